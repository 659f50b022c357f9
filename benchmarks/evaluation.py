"""Fine-tuning examples per second beside the loop of transformers' examples, on the same work.

    python -m benchmarks.evaluation [--json] [--data DIR] [--threads N] [--rounds N] [--examples N]
        [--rate R] [--only {sst2,squad}] [--precision {fp32,bf16}]

Both train the same BERT (4 layers × 256) from the same weights on the same tokenised examples, with the
same batch size, rate, warm-up and number of steps, both in float32 or both with products in bfloat16.
Theirs: transformers' own attention (sdpa), ``DataLoader`` in random order, padded to the longest of the
batch, ``AdamW``, a linear schedule. They take turns, one epoch each; a figure is the median over turns of
examples per second of processor time (all threads together), which a busy machine disturbs less than the
clock. Scores on the dev part are means over the turns, whose seeds differ. Without ``--data`` the text is
made up, in lengths like those of SST-2 and SQuAD. Runs in about six minutes on a free core.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # on a busy machine, spinning threads starve others
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)

from benchmarks.evaluation_text import question_files, sentence_files
from benchmarks.record import as_json
from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.finetune import FineTuning, Telling, fine_tune, open_seeded
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks.glue import GlueTask, read_split
from chronomask.evaluate.tasks.squad import SquadConfig, SquadTask, read_questions
from chronomask.types import Precision

TASKS = ("sst2", "squad")
SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def make_model(folder: Path, texts: Iterable[str]) -> Subject:
    """A BERT with weights of no training and a WordPiece of the texts."""
    backend = Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"]))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=16_384, special_tokens=list(SPECIALS.values()), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    cls, sep = SPECIALS["cls"], SPECIALS["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    names = {f"{role}_token": token for role, token in SPECIALS.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=384,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return find_subject(str(folder))


@dataclass(frozen=True)
class Work:
    """One task ready to be trained by either side. ``score`` takes a trained model."""

    name: str
    head: str
    """name of transformers' auto class with the head"""
    encoded: Encoded
    targets: dict[str, torch.Tensor]
    """what the model computes its own loss from, by keyword"""
    loss: Callable[..., torch.Tensor]
    config: FineTuning
    score: Callable[[Any], float]
    rate: float
    """of both sides: a model that was not pre-trained learns nothing from rates as low as the recipes'"""


def as_transformers_opens(subject: Subject, head: str, seed: int) -> Any:
    """The model as the examples open it: its dropout and linear layers are torch's own, and not ours."""
    torch.manual_seed(seed)
    return getattr(transformers, head).from_pretrained(subject.path, attn_implementation="sdpa")


def their_seconds(model: Any, work: Work, seed: int) -> float:
    """Processor time of one epoch of the examples' loop."""
    encoded, config = work.encoded, work.config
    device = torch.device("cpu")

    def collate(index: list[int]) -> dict[str, torch.Tensor]:
        batch = encoded.batch(np.asarray(index), model, device)
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        return batch | {name: values[index] for name, values in work.targets.items()}

    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        range(len(encoded)),  # pyright: ignore[reportArgumentType]
        batch_size=config.batch_size,
        shuffle=True,
        generator=generator,
        collate_fn=collate,
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=work.rate, weight_decay=config.weight_decay
    )
    warmup = round(config.warmup_share * len(loader))
    schedule = get_linear_schedule_with_warmup(optimiser, warmup, len(loader))
    model.train()
    begun = time.process_time()
    low = config.precision == "bf16"
    for batch in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    seconds = time.process_time() - begun
    model.eval()
    return seconds


def our_seconds(model: Any, work: Work, seed: int) -> float:
    """Processor time of one epoch of our loop."""
    begun = time.process_time()
    fine_tune(
        model,
        work.encoded,
        work.loss,
        work.config,
        work.rate,
        seed,
        telling=Telling(work.name, work.name),
    )
    return time.process_time() - begun


def measure(subject: Subject, work: Work, rounds: int) -> dict[str, float]:
    """Turns of both sides: the ratio of their speeds, the speeds, and the scores."""
    sides = {"ours": our_seconds, "hf": their_seconds}
    speed: dict[str, list[float]] = {side: [] for side in sides}
    score: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(rounds):
        for side, train in sides.items():
            with open_seeded(subject, work.head, work.config, seed) as model:
                if side == "hf":
                    model = as_transformers_opens(subject, work.head, seed)
                speed[side].append(len(work.encoded) / train(model, work, seed))
                score[side].append(work.score(model))
    result = {f"{work.name}_vs_hf": median(speed["ours"]) / median(speed["hf"])}
    for side in sides:
        result[f"{work.name}_examples_per_second_{side}"] = median(speed[side])
        result[f"{work.name}_score_{side}"] = mean(score[side])
        result[f"{work.name}_score_sd_{side}"] = stdev(score[side]) if rounds > 1 else 0.0
    return result


def sentences(
    subject: Subject, data: Path, examples: int, rate: float, precision: Precision = "fp32"
) -> Work:
    """SST-2, so many training examples of it."""
    task = GlueTask("sst2", FineTuning(epochs=1, limit=examples, precision=precision))
    train, dev = (task.part(subject, read_split("sst2", data, split)) for split in ("train", "dev"))

    def score(model: Any) -> float:
        return task.score(dev, task.answers(model, dev))

    return Work(
        "sst2",
        task.head,
        train.encoded,
        {"labels": torch.from_numpy(train.examples.labels)},
        task.loss(train, torch.device("cpu")),
        task.config,
        score,
        rate,
    )


def questions(
    subject: Subject, data: Path, examples: int, rate: float, precision: Precision = "fp32"
) -> Work:
    """SQuAD, so many training questions of it."""
    task = SquadTask(SquadConfig(epochs=1, limit=examples, precision=precision))
    train, dev = (task.part(subject, read_questions(data, split)) for split in ("train", "dev"))
    places = torch.from_numpy(train.encoded.answer)

    def score(model: Any) -> float:
        return task.score(dev, task.answers(model, dev))

    return Work(
        "squad",
        task.head,
        train.encoded,
        {"start_positions": places[:, 0], "end_positions": places[:, 1]},
        task.loss(train, torch.device("cpu")),
        task.config,
        score,
        rate,
    )


def fine_tuning(
    data: Path | None,
    tasks: Iterable[str],
    examples: int,
    rate: float,
    rounds: int,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """The tasks; ``examples`` sentences to train on and half as many questions."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if data is None:
            data = root / "text"
            sentence_files(data, examples, 400)
            question_files(data, examples // 2, 100)
        sst2, squad = read_split("sst2", data, "train"), read_questions(data, "train")
        texts = [*sst2.texts[:50_000], *squad.contexts[:5_000]]
        subject = make_model(root / "model", texts)
        if "sst2" in tasks:
            work = sentences(subject, data, examples, rate, precision)
            result |= measure(subject, work, rounds)
        if "squad" in tasks:
            work = questions(subject, data, examples // 2, rate, precision)
            result |= measure(subject, work, rounds)
    return result


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description="Fine-tuning speed beside the loop of transformers' examples.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--data", type=Path, help="folder with glue/SST-2 and squad")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns each side takes")
    parser.add_argument("--examples", type=int, default=1200, help="sentences to train on")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of both sides")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    result: dict[str, Any] = {"threads": chosen.threads, "torch": torch.__version__}
    kind = {"fp32": "float32", "bf16": "bfloat16"}[chosen.precision]
    print(f"BERT 4 × 256, {kind}; examples per second of processor time, and scores on dev")
    for task in chosen.only:
        result |= fine_tuning(
            chosen.data, (task,), chosen.examples, chosen.rate, chosen.rounds, chosen.precision
        )
        for side, name in (("ours", "chronomask"), ("hf", "transformers' example loop")):
            speed = result[f"{task}_examples_per_second_{side}"]
            score, spread = result[f"{task}_score_{side}"], result[f"{task}_score_sd_{side}"]
            print(f"  {task:<6} {name:<27} {speed:>8.1f}   score {score:.3f} ± {spread:.3f}")
        print(f"  {task:<6} ratio {result[f'{task}_vs_hf']:>31.2f}", flush=True)
    if chosen.json:
        print(as_json(result))


if __name__ == "__main__":
    main()
