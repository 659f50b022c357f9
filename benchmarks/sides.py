"""The two sides of the training benchmarks: this loop, and transformers' ``Trainer``, on the same rows.

Text is made up: Zipf-distributed words in documents, so nothing is needed beside the package and
``accelerate``. A side gives what each of its steps took. Sizes come in as :class:`Work`, so that the CPU
benchmark, the GPU benchmark and its rehearsal at toy size run the same code.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.data.folder import PreparedData
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.model.build import build_model
from chronomask.model.config import FromConfig
from chronomask.model.open import open_tokenizer
from chronomask.prepare.rows.pack import Pieces, Specials, pack_documents
from chronomask.runs.layout import RunFolder
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.log import RunLog
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from chronomask.train.updates import update
from chronomask.types import UPOS_CLASSES, Precision

__all__ = [
    "CPU_WORK",
    "SPECIALS",
    "Step",
    "Work",
    "bare",
    "bare_steps",
    "draw_tokens",
    "make_data",
    "make_documents",
    "ours",
    "run_config",
    "trainer",
]

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, _, CLS, SEP, _ = range(len(SPECIALS))


@dataclass(frozen=True, slots=True)
class Work:
    """A model and the rows of a step."""

    overrides: dict[str, Any]
    vocabulary: int
    row_length: int
    rows: int
    device: str = "cpu"
    precision: Precision = "fp32"
    threads: int = 1
    micro_batches: int = 1
    model_type: str = "bert"

    @property
    def tokens(self) -> int:
        """Tokens of a step, padding included."""
        return self.row_length * self.rows

    @property
    def model(self) -> FromConfig:
        """A model for these rows."""
        sizes = {"max_position_embeddings": self.row_length, **self.overrides}
        return FromConfig(model_type=self.model_type, overrides=sizes)


CPU_WORK = Work(
    overrides={
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    vocabulary=16_384,
    row_length=128,
    rows=32,
)
"""4 layers × 256, vocabulary 16k, 32 rows of 128 tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took: on the clock, of all CPU cores together, and tokens that are not padding."""

    seconds: float
    cpu_seconds: float
    tokens: int


Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
"""(generator, tokens, vocabulary) → ids and annotation of made-up text."""


def make_data(folder: Path, work: Work, num_rows: int, draw: Draw | None = None) -> PreparedData:
    """Prepared rows of documents of about 200 tokens, one after the other without padding.

    ``draw``: text other than independent words.
    """
    _write_tokenizer(folder, work.vocabulary)
    rng = np.random.default_rng(0)
    entries = {}
    for split, rows in (("train", num_rows), ("held_out", 8)):
        size = rows * work.row_length
        ids, annotation = (draw or draw_tokens)(rng, size, work.vocabulary)
        starts = np.flatnonzero(rng.random(size) < 1 / 200)
        starts = starts[starts % work.row_length > 0]
        begins = np.union1d(starts, np.arange(0, size, work.row_length))
        ids[begins], annotation[begins] = CLS, SPECIAL
        annotation[np.minimum(begins + 1, size - 1)] |= WORD_START
        writer = RowWriter(folder, split, work.row_length, work.vocabulary)
        shape = (rows, work.row_length)
        writer.write(ids.reshape(shape), annotation.reshape(shape), starts, size)
        entries[split] = writer.finish(begins.size)
    return _finish(folder, work, entries)


def make_documents(
    folder: Path, work: Work, num_documents: int
) -> tuple[PreparedData, list[list[int]]]:
    """Documents of natural length, packed whole into rows, and the same ones as lists of ids.

    Lengths are log-normal around a third of a row, cut at a row; their mean is below half of one.
    """
    _write_tokenizer(folder, work.vocabulary)
    rng = np.random.default_rng(1)
    body = work.row_length - 2
    lengths = np.clip(rng.lognormal(np.log(work.row_length / 3), 0.6, num_documents), 4, body)
    lengths = lengths.astype(np.int64)
    ids, annotation = draw_tokens(rng, int(lengths.sum()), work.vocabulary)
    annotation[np.cumsum(lengths) - lengths] |= WORD_START
    entries = {}
    for split in ("train", "held_out"):
        writer = RowWriter(folder, split, work.row_length, work.vocabulary)
        pieces = [Pieces(ids, annotation, lengths)]
        for rows in pack_documents(pieces, work.row_length, Specials(CLS, SEP, PAD)):
            writer.write(rows.ids, rows.annotation, rows.bounds, rows.num_tokens)
        entries[split] = writer.finish(num_documents)
    ends = np.cumsum(lengths)
    documents = [
        [CLS, *ids[end - n : end].tolist(), SEP] for end, n in zip(ends, lengths, strict=True)
    ]
    return _finish(folder, work, entries), documents


def ours(
    work: Work,
    data: PreparedData,
    out: Path,
    steps: int,
    *,
    ratio: float = 0.15,
    after_step: Callable[[], None] = lambda: None,
    **changes: Any,
) -> list[Step]:
    """Steps of a run: part-of-speech weights, whole words, documents apart; every step logged.

    ``changes`` are fields of the run's config. The first step begins before it can be noted and counts
    from the second on like the ``Trainer``'s. The run ends with its last step, and is neither validated nor
    saved.
    """
    masking = {"ratio": {"kind": "constant", "base": ratio}, "content": {"kind": "ptw"}}
    config = run_config(work, data, steps, **({"masking": masking} | changes))
    with _step_ends(after_step, steps) as ends, suppress(_AllStepsDone):
        pretrain(config, out, progress=False)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return _steps(ends, np.diff([line["tokens_seen"] for line in logged]).tolist())


def run_config(work: Work, data: PreparedData, steps: int, **changes: Any) -> RunConfig:
    """The config of a run of ``work``; nothing is validated or saved before the end."""
    return RunConfig.parse(
        {
            "data": str(data.path),
            "model": work.model.to_dict(),
            "learning_rate": {"kind": "linear", "peak": 5e-4},
            "steps": steps,
            "rows_per_step": work.rows,
            "micro_batches": work.micro_batches,
            "log_every": 1,
            "device": work.device,
            "precision": work.precision,
            "peak_flops": 1e12,
            "threads": work.threads,
            "validation": {"every": 0, "rows": 8, "batch_rows": 8},
            "checkpoint": {"every": 0},
        }
        | changes
    )


def bare(work: Work, data: PreparedData, out: Path, steps: int) -> list[Step]:
    """Steps of forward, backward and update alone, on a batch masked beforehand."""
    torch.set_num_threads(work.threads)
    train = bare_steps(work, data, out)
    ends = [(time.perf_counter(), time.process_time())]
    for step in range(steps):
        train(step)
        ends.append((time.perf_counter(), time.process_time()))
    return _steps(ends, [work.tokens] * steps)


def bare_steps(work: Work, data: PreparedData, out: Path, **changes: Any) -> Callable[[int], None]:
    """A function that does a step of :func:`bare`; ``changes`` are fields of the run's config."""
    masking = {"ratio": {"kind": "constant", "base": 0.15}, "content": {"kind": "ptw"}}
    config = run_config(work, data, 1000, masking=masking, **changes)
    run, _ = open_run(config, RunFolder(out), World(0, 1, torch.device(work.device)), resume=False)
    parts = [run.forward.mask(run.loader.rows_at(step), run.masker, 0.0) for step in range(2)]

    def train(step: int) -> None:
        part = parts[step % len(parts)]
        loss, _, _ = run.forward.losses(part)
        (loss.sum() / max(1, loss.shape[0])).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
        update(run.optimiser, 5e-4, norm, 1.0)
        run.optimiser.zero_grad(set_to_none=True)

    return train


class Examples(Dataset[dict[str, Any]]):
    """Lists of ids as the ``Trainer`` takes them."""

    def __init__(self, ids: Sequence[list[int]]) -> None:
        self.ids = ids

    @classmethod
    def of(cls, data: PreparedData) -> Examples:
        """Prepared rows, decoded beforehand."""
        split = data.split("train")
        return cls(split.read(np.arange(split.num_rows), 0).input_ids.tolist())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index]}


class _Clock(TrainerCallback):
    """Notes the time at the end of every step, and calls what is to be called then."""

    def __init__(self, after_step: Callable[[], None]) -> None:
        self.ends: list[tuple[float, float]] = []
        self._after_step = after_step

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))
        self._after_step()


class _Counting(DataCollatorForLanguageModeling):
    """Notes how many tokens of each batch are not padding."""

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        self.counted = [*getattr(self, "counted", []), sum(len(e["input_ids"]) for e in examples)]
        return super().torch_call(examples)


def trainer(
    work: Work,
    data: PreparedData,
    examples: Examples,
    out: Path,
    steps: int,
    ratio: float = 0.15,
    compiled: str | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> list[Step]:
    """Steps of a ``Trainer`` as its masked-language-modelling example sets it up.

    ``compiled``: the backend of ``torch.compile``, if any. Examples of unequal length are padded to the
    longest of their batch. The first step is not among
    them, because its beginning is not known.
    """
    torch.set_num_threads(work.threads)
    tokenizer = open_tokenizer(data.tokenizer_path)
    built = build_model(work.model, tokenizer, row_length=work.row_length, seed=0, attention="row")
    clock, collator = _Clock(after_step), _Counting(tokenizer, mlm_probability=ratio)
    bf16 = work.precision == "bf16"
    turns = Trainer(
        model=AutoModelForMaskedLM.from_config(built.config, attn_implementation="sdpa"),
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=work.rows // work.micro_batches,
            gradient_accumulation_steps=work.micro_batches,
            learning_rate=5e-4,
            optim="adamw_torch_fused",
            use_cpu=work.device == "cpu",
            bf16=bf16,
            torch_compile=compiled is not None,
            torch_compile_backend=compiled,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=examples,
        data_collator=collator,
        callbacks=[clock],
    )
    turns.train()
    tokens = np.reshape(collator.counted[: steps * work.micro_batches], (steps, -1)).sum(1)
    return _steps(clock.ends, tokens[1:].tolist())


class _AllStepsDone(BaseException):
    """Ends a run before the validation and the checkpoint that follow its last step."""


@contextmanager
def _step_ends(after_step: Callable[[], None], steps: int) -> Iterator[list[tuple[float, float]]]:
    """Times at which a run has done a step and logged it; raises in it when it has done so many.

    A run waits for each of its steps itself. A device has the next one by then, which nothing waits for here:
    it would stand idle until the one after that is asked for.
    """
    ends: list[tuple[float, float]] = []
    advance = RunLog.advance

    def noted(self: RunLog, *arguments: Any) -> None:
        advance(self, *arguments)
        ends.append((time.perf_counter(), time.process_time()))
        after_step()
        if len(ends) == steps:
            raise _AllStepsDone

    RunLog.advance = noted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield ends
    finally:
        RunLog.advance = advance


def _steps(ends: Sequence[tuple[float, float]], tokens: Sequence[int]) -> list[Step]:
    seconds, cpu = np.diff(np.array(ends), axis=0).T
    return [Step(*step) for step in zip(seconds.tolist(), cpu.tolist(), tokens, strict=True)]


def draw_tokens(
    rng: np.random.Generator, size: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and annotation [size] of made-up text: Zipf's words, three of four tokens begin one."""
    share = 1 / np.arange(1, vocabulary - len(SPECIALS) + 1)
    ids = len(SPECIALS) + rng.choice(share.size, size, p=share / share.sum())
    annotation = rng.integers(1, len(UPOS_CLASSES), size).astype(np.uint8)
    annotation[rng.random(size) < 0.75] |= WORD_START
    return ids, annotation


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    words = {token: number for number, token in enumerate(SPECIALS)}
    words |= {f"w{number}": number for number in range(len(SPECIALS), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIALS, strict=True))
    ).save_pretrained(folder / "tokenizer")


def _finish(folder: Path, work: Work, entries: dict[str, Any]) -> PreparedData:
    values = {
        "tokenizer_sha256": hashlib.sha256(
            (folder / "tokenizer" / "tokenizer.json").read_bytes()
        ).hexdigest(),
        "tagger": "made up",
        "class_names": UPOS_CLASSES,
        "row_length": work.row_length,
        "packing": "made up",
        "pad_token_id": PAD,
        "vocab_size": work.vocabulary,
    }
    write_manifest(folder, values, entries)
    return PreparedData.open(folder)
