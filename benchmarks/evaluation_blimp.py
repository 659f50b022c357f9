"""BLiMP sentences per second, beside scoring one sentence at a time.

    python -m benchmarks.evaluation_blimp [--json] [--data BLIMP] [--rounds N]

One at a time is what a plain script does: the masked copies of a sentence are a batch, the model gives
logits at all their tokens, and the masked ones' log-probabilities are added up. Both score the same
sentences with the same model of random weights on one thread, in turns; their scores are compared.

- ``blimp_vs_one_by_one``: how many times as many sentences a second with BERT's vocabulary of 30,522, the
  median of the rounds (CPU time); ``blimp_vs_one_by_one_8k``: with a vocabulary of 8,192. What remains is the
  encoder's matrix products, which both do in full: the smaller the head's share, the smaller the gain.
- ``blimp_sentences_per_second``: ours, encoding included.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from benchmarks.record import as_json
from chronomask.evaluate.pseudo import PseudoLikelihood, encode_sentences, pseudo_log_likelihood
from chronomask.evaluate.tasks.blimp import contents, read_pairs

NUM_SENTENCES, VOCAB_SIZE, SMALL_VOCAB_SIZE = 200, 30522, 8192
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
"""A small BERT; with BERT's own vocabulary, and with one of the size that small corpora get."""
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def made_up_sentences() -> list[str]:
    """Sentences of BLiMP's lengths, 4 to 13 words, from 20,000 made-up words."""
    choose = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in "aeiou"]
    words = ["".join(choose.choices(syllables, k=choose.randint(1, 4))) for _ in range(20_000)]
    return [
        " ".join(choose.choices(words, k=choose.randint(4, 13))) + "."
        for _ in range(10 * NUM_SENTENCES)
    ]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece of at most ``SMALL_VOCAB_SIZE`` tokens."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=SMALL_VOCAB_SIZE, special_tokens=SPECIALS, show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(names, SPECIALS, strict=True))
    )


@torch.inference_mode()
def one_by_one(model: Any, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """``within_word_l2r``, a sentence after the other."""
    scores = []
    for text in texts:
        encoded = tokenizer(text)
        ids = torch.tensor(encoded["input_ids"])
        mask_id: Any = tokenizer.mask_token_id
        words = encoded.word_ids()
        scored = [k for k, word in enumerate(words) if word is not None]
        copies = ids.repeat(len(scored), 1)
        for row, k in enumerate(scored):
            end = k + 1
            while words[end] == words[k]:
                end += 1
            copies[row, k:end] = mask_id
        log_p = torch.log_softmax(model(copies).logits, -1)
        rows = torch.arange(len(scored))
        scores.append(log_p[rows, scored, ids[scored]].double().sum().item())
    return np.array(scores)


def batched(model: Any, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """The same scores as the library gives them."""
    config = PseudoLikelihood()
    sentences, _ = encode_sentences(tokenizer, texts, 512, config.score)
    return pseudo_log_likelihood(model, sentences, tokenizer, config, label="blimp", progress=False)


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """CPU seconds of the process, and what the call gave."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def benchmark_blimp(data: Path | None = None, rounds: int = 5) -> dict[str, float]:
    """The figures; on made-up sentences without ``data``."""
    torch.set_num_threads(1)
    texts = made_up_sentences()
    if data is not None:
        texts = [text for pair in read_pairs(contents(data)) for text in (pair.good, pair.bad)]
    tokenizer = make_tokenizer(texts)
    texts = random.Random(1).sample(sorted(set(texts)), NUM_SENTENCES)
    figures = {}
    for suffix, vocab_size in (("", VOCAB_SIZE), ("_8k", SMALL_VOCAB_SIZE)):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:  # as a saved model is opened
            BertForMaskedLM(BertConfig(vocab_size=vocab_size, **SIZES)).save_pretrained(folder)
            model: Any = BertForMaskedLM.from_pretrained(folder).eval()
        ratios, ours = [], []
        for _ in range(rounds):
            slow, expected = timed(lambda model=model: one_by_one(model, tokenizer, texts))
            fast, found = timed(lambda model=model: batched(model, tokenizer, texts))
            np.testing.assert_allclose(found, expected, atol=1e-3)
            ratios.append(slow / fast)
            ours.append(fast)
        figures[f"blimp_vs_one_by_one{suffix}"] = round(median(ratios), 2)
        figures[f"blimp_sentences_per_second{suffix}"] = round(len(texts) / median(ours), 1)
    return figures


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--data", type=Path, help="BLiMP: a folder or archive, or its parent")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured, in turns")
    options = parser.parse_args()
    figures = benchmark_blimp(options.data, options.rounds)
    for key, value in figures.items():
        print(f"{key:28}{value:12,.2f}")
    if options.json:
        print(as_json(figures))


if __name__ == "__main__":
    main()
