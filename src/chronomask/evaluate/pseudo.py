"""Pseudo-log-likelihood: how likely a masked language model finds a sentence, one masked copy per token.

A sentence of T tokens with M of them predicted becomes M copies of T tokens; all copies of all sentences
are sorted by length and run in batches, and the head runs on the one position of each copy that counts.

``original`` (Salazar et al., ACL 2020): each token is predicted with itself masked. A word cut into
pieces then looks easy, since its other pieces give it away. ``within_word_l2r`` (Kauf and Ivanova,
ACL 2023): the pieces of the same word to its right are masked too. Words are the tokenizer's own where
they hold no space, else those that the marks of its vocabulary tell (``▁``, ``Ġ``, ``##``). Where neither
tells words apart the score is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.errors import UsageError
from chronomask.evaluate.batches import by_tokens
from chronomask.evaluate.subject import Subject
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.types import Device, Precision, send_all
from chronomask.vocabulary import need_role

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PseudoLikelihood",
    "Score",
    "Sentences",
    "check_pseudo",
    "encode_sentences",
    "pseudo_log_likelihood",
]

Score = Literal["within_word_l2r", "original"]
"""Which tokens are masked while one is predicted: the pieces of its word to its right too, or it alone."""
_TEXTS_AT_ONCE = 4096
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""A letter of a script that is written without spaces: Thai to Burmese, Khmer, kana, ideographs."""
_WAY_OUT = "--set {task}.score=original, which masks the predicted token alone"


class PseudoLikelihood(Config):
    """What decides a pseudo-log-likelihood, and how fast it is computed."""

    score: Score = "within_word_l2r"
    """which tokens are masked while one is predicted"""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """tokens of a forward pass, over all its masked copies; none: 2048 on the host (what stays in its
    caches), 65536 on a CUDA device"""
    precision: Precision = "fp32"
    """of matrix products, weights and sums are float32; auto: bf16 where the device is
    faster with it"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """at most so many examples of each part, for a quick look; none: all"""


@dataclass(frozen=True, slots=True)
class Sentences:
    """Token ids of N sentences, end to end, special tokens included.

    ``ids`` int64 [sum of lengths]; ``word`` int64, the same shape: number of the word a token belongs to,
    −1 for special tokens; ``bounds`` int64 [N + 1].
    """

    ids: NDArray[np.int64]
    word: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def num_scored(self) -> NDArray[np.int64]:
        """int64 [N]: tokens of each sentence that are predicted."""
        scored = np.concatenate(([0], np.cumsum(self.word >= 0)))
        return np.diff(scored[self.bounds])


def check_pseudo(model: Subject, config: PseudoLikelihood) -> None:
    """Raise UsageError where none can be computed: no such device, head, mask token or word bounds."""
    from chronomask.model.device import choose_device

    choose_device(config.device)
    model.masked_lm()  # its head is among the weights
    tokenizer = model.tokenizer
    need_role(tokenizer, "mask", f"the tokenizer of {model.name}")
    if not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer of {model.name} does not report which tokens form a word: "
            "save it as a fast tokenizer (tokenizer.json)"
        )


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    score: Score = "within_word_l2r",
    task: str = "blimp",
    begins: Sequence[int] | None = None,
    shown: Progress = NOT_SHOWN,
) -> tuple[Sentences, NDArray[np.int64]]:
    """Texts as tokens, and for each sentence the text it comes from int64 [N].

    A text of more than ``max_length`` tokens becomes several sentences. Raises UsageError where ``score``
    needs words and nothing tells them; ``task`` is named in the way out. ``begins`` [N]: the character of
    each text up to which its tokens are context, and not predicted. ``shown``: counts the texts.

    A text that spells a special token ("</s>") is ordinary text, as it is to preparation. Where a tokenizer
    makes that token of it all the same, as those do that look it up like other pieces, it is not predicted.
    """
    specials = set(tokenizer.all_special_ids).difference([tokenizer.unk_token_id])
    ids: list[list[int]] = []
    words: list[list[int]] = []
    source: list[int] = []
    context: list[NDArray[np.bool_]] = []
    joined = False
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer(
            list(texts[begin : begin + _TEXTS_AT_ONCE]),
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=True,
        )
        special: Any = encoded["special_tokens_mask"]
        origin: Any = encoded.get("overflow_to_sample_mapping", range(len(special)))
        spans: Any = encoded["offset_mapping"]
        for number, (row, marks) in enumerate(zip(encoded["input_ids"], special, strict=True)):
            found = zip(row, encoded.word_ids(number), marks, strict=True)
            ids.append(row)
            words.append(
                [
                    -1 if mark or word is None or token in specials else word
                    for token, word, mark in found
                ]
            )
            source.append(begin + origin[number])
            joined = joined or _joins_words(words[-1], spans[number], texts[source[-1]])
            if begins is not None:
                ends = np.array(spans[number], np.int64).reshape(-1, 2)[:, 1]
                context.append(ends <= begins[source[-1]])
        shown.advance(len(texts[begin : begin + _TEXTS_AT_ONCE]))
    bounds = np.concatenate(([0], np.cumsum([len(row) for row in ids]))).astype(np.int64)
    flat = [np.array([t for row in rows for t in row], np.int64) for rows in (ids, words)]
    sentences = Sentences(flat[0], flat[1], bounds)
    if score == "within_word_l2r":
        if joined:
            sentences = _words_by_marks(sentences, tokenizer, task)
        _check_words(sentences, [texts[k] for k in source], tokenizer, task)
    if context:
        word = np.where(np.concatenate(context), -1, sentences.word)
        sentences = replace(sentences, word=word)
    return sentences, np.array(source, np.int64)


def _joins_words(words: list[int], spans: list[tuple[int, int]], text: str) -> bool:
    """Whether what the tokenizer calls one word holds a space, and so is several words.

    Tokenizers that turn spaces into a mark before they split anything (Gemma's, Llama's) call a whole
    sentence one word.
    """
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for word, (begin, end) in zip(words, spans, strict=True):
        if word >= 0:
            begins.setdefault(word, begin)
            ends[word] = end
    return any(" " in text[begins[word] : ends[word]].strip() for word in begins)


def _words_by_marks(
    sentences: Sentences, tokenizer: PreTrainedTokenizerBase, task: str
) -> Sentences:
    """The same tokens, their words read off the marks of the vocabulary; raises UsageError without any."""
    from chronomask.masking.word_marks import ALONE, BEGINS, word_marks

    try:
        marks = word_marks(tokenizer)[sentences.ids]
    except UsageError:
        marks = np.zeros(sentences.ids.size, np.uint8)
    scored = sentences.word >= 0
    begins = (marks & BEGINS) > 0
    begins[1:] |= (marks[:-1] & ALONE) > 0
    if not (begins & scored).any():
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) calls several words one, and its vocabulary "
            f"marks none, so the pieces of a word cannot be distinguished from the next word: "
            f"{_WAY_OUT.format(task=task)}"
        )
    begins[1:] |= ~scored[:-1]
    begins[sentences.bounds[:-1]] = True
    return replace(sentences, word=np.where(scored, np.cumsum(begins), -1))


def _check_words(
    sentences: Sentences, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, task: str
) -> None:
    """Raise UsageError where most sentences are mostly one word, in a script without spaces.

    Of such a sentence ``within_word_l2r`` would mask all that is to the right. ``texts`` [N]: the text
    that each sentence is of.
    """
    suspicious = 0
    for begin, end, text in zip(sentences.bounds[:-1], sentences.bounds[1:], texts, strict=True):
        words = sentences.word[begin:end]
        words = words[words >= 0]
        if words.size > 3 and _WITHOUT_SPACES.search(text):
            longest = np.unique(words, return_counts=True)[1].max()
            suspicious += 2 * longest > words.size
    if 2 * suspicious > len(texts):
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) does not separate words that are written without "
            f"spaces, so the pieces of a word cannot be distinguished from the next word: "
            f"{_WAY_OUT.format(task=task)}"
        )


def pseudo_log_likelihood(
    model: PreTrainedModel,
    sentences: Sentences,
    tokenizer: PreTrainedTokenizerBase,
    config: PseudoLikelihood,
    *,
    label: str,
    progress: bool,
) -> NDArray[np.float64]:
    """Σ log p(token | the rest, masked as ``config.score`` says), in nats, [N]; 0 without tokens.

    ``model``: in evaluation mode, on its device.
    """
    import torch

    from chronomask.model.device import autocast
    from chronomask.model.documents import padded_rows
    from chronomask.model.head import logits_at, token_losses

    device = next(model.parameters()).device
    mask_token_id: Any = tokenizer.mask_token_id
    pad_token_id: Any = tokenizer.pad_token_id or 0
    copies = _Copies.of(sentences, config.score)
    batch_tokens = config.batch_tokens or (2048 if device.type == "cpu" else 65536)
    log_p = np.zeros(copies.target.size)

    with (
        torch.inference_mode(),
        Progress(label, copies.target.size, "masked copies", shown=progress) as shown,
    ):
        for index in by_tokens(copies.length, batch_tokens, model):
            ids, real, position, target = copies.batch(
                sentences, index, mask_token_id, pad_token_id
            )
            inputs = padded_rows(model, real, device)
            sent = send_all({"ids": ids, "position": position, "target": target}, device)
            with autocast(device, config.precision):
                logits = logits_at(model, sent["ids"], sent["position"], inputs)
            loss, _, _ = token_losses(logits.float(), sent["target"])
            log_p[index] = -loss.double().cpu().numpy()
            shown.advance(index.size)
    total = np.zeros(sentences.bounds.size - 1)
    np.add.at(total, copies.sentence, log_p)
    return total


@dataclass(frozen=True, slots=True)
class _Copies:
    """The masked copies of all sentences: one per predicted token. All int64 [copies]."""

    sentence: NDArray[np.int64]
    target: NDArray[np.int64]
    """index of the predicted token in ``Sentences.ids``"""
    end: NDArray[np.int64]
    """first token after ``target`` that is not masked"""
    length: NDArray[np.int64]

    @classmethod
    def of(cls, sentences: Sentences, score: Score) -> _Copies:
        lengths = np.diff(sentences.bounds)
        sentence = np.repeat(np.arange(lengths.size), lengths)
        word = sentences.word
        target = np.flatnonzero(word >= 0)
        end = target + 1
        if score == "within_word_l2r":
            last = np.ones(word.size, bool)  # of its word
            last[:-1] = (word[1:] != word[:-1]) | (sentence[1:] != sentence[:-1])
            ends = np.flatnonzero(last) + 1
            end = ends[np.searchsorted(ends, target, side="right")]
        return cls(sentence[target], target, end, lengths[sentence[target]])

    def batch(
        self, sentences: Sentences, index: NDArray[np.int64], mask_id: int, pad_id: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Masked ids and which are real, both [B, T]; flat position and id of each target, [B]."""
        begin = sentences.bounds[self.sentence[index]][:, None]
        place = np.arange(self.length[index].max())
        real = place < self.length[index][:, None]
        source = np.where(real, begin + place, 0)
        hidden = (
            real & (source >= self.target[index][:, None]) & (source < self.end[index][:, None])
        )
        ids = np.where(real, sentences.ids[source], pad_id)
        ids[hidden] = mask_id
        position = np.arange(index.size) * place.size + self.target[index] - begin[:, 0]
        return ids, real, position, sentences.ids[self.target[index]]
