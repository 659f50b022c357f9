"""Tokens per second of the training loop beside transformers' ``Trainer``, on the same work.

    python -m benchmarks.training [--json] [--threads N] [--steps N] [--rounds N]

Both train the same BERT (4 layers × 256, vocabulary 16k) in float32 on the same packed rows (length
128, 32 a step), masking 15 %: the ``Trainer`` with ``DataCollatorForLanguageModeling``, ours with whole
words, part-of-speech weights and documents kept apart, which is more work. They take turns in short
rounds; the first steps of every round warm up and are not counted; figures are medians over steps.
The text is made up (Zipf-distributed words in documents), so nothing is needed beside the package and
``accelerate``. Runs in about two minutes on two free cores.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # on a busy machine, spinning threads starve others
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path
from statistics import median
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

from chronomask.data.format import SPECIAL, WORD_START, PreparedData
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.model.build import FromConfig, build_model, load_tokenizer
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.types import UPOS_CLASSES

VOCABULARY, ROW_LENGTH, ROWS_PER_STEP = 16_384, 128, 32
TOKENS_PER_STEP = ROW_LENGTH * ROWS_PER_STEP
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODEL = FromConfig(
    model_type="bert",
    overrides={
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "max_position_embeddings": ROW_LENGTH,
    },
)


def make_data(folder: Path, num_rows: int) -> PreparedData:
    """Prepared rows of made-up documents of about 200 tokens, packed without padding."""
    words = {token: number for number, token in enumerate(SPECIALS)}
    words |= {f"w{number}": number for number in range(len(SPECIALS), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIALS, strict=True))
    ).save_pretrained(folder / "tokenizer")

    rng = np.random.default_rng(0)
    entries = {}
    for split, rows in (("train", num_rows), ("held_out", 8)):
        size = rows * ROW_LENGTH
        share = 1 / np.arange(1, VOCABULARY - len(SPECIALS) + 1)
        ids = len(SPECIALS) + rng.choice(share.size, size, p=share / share.sum())
        annotation = rng.integers(1, len(UPOS_CLASSES), size)
        annotation[rng.random(size) < 0.75] |= WORD_START
        starts = np.flatnonzero(rng.random(size) < 1 / 200)
        starts = starts[starts % ROW_LENGTH > 0]
        begins = np.union1d(starts, np.arange(0, size, ROW_LENGTH))
        ids[begins], annotation[begins] = 2, SPECIAL
        annotation[np.minimum(begins + 1, size - 1)] |= WORD_START
        writer = RowWriter(folder, split, ROW_LENGTH, VOCABULARY)
        shape = (rows, ROW_LENGTH)
        writer.write(ids.reshape(shape), annotation.reshape(shape), starts, size)
        entries[split] = writer.finish(begins.size)
    digest = hashlib.sha256((folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    values = {
        "tokenizer_sha256": digest,
        "tagger": "made up",
        "class_names": UPOS_CLASSES,
        "row_length": ROW_LENGTH,
        "packing": "made up",
        "pad_token_id": 0,
        "vocab_size": VOCABULARY,
    }
    write_manifest(folder, values, entries)
    return PreparedData.open(folder)


def our_seconds(data: PreparedData, out: Path, steps: int, threads: int) -> list[float]:
    """Seconds of each step of a run, as the run itself logs them."""
    config = RunConfig.parse(
        {
            "data": str(data.path),
            "model": MODEL.to_dict(),
            "masking": {"ratio": {"kind": "constant", "base": 0.15}, "content": {"kind": "ptw"}},
            "learning_rate": {"kind": "linear", "peak": 5e-4},
            "steps": steps,
            "rows_per_step": ROWS_PER_STEP,
            "log_every": 1,
            "device": "cpu",
            "threads": threads,
            "validation": {"every": 0, "rows": 8, "batch_rows": 8},
            "checkpoint": {"every": 0},
        }
    )
    pretrain(config, out, progress=False)
    logged = (out / "metrics.jsonl").read_text().splitlines()
    return [TOKENS_PER_STEP / json.loads(line)["tokens_per_second"] for line in logged]


class _Rows(Dataset[dict[str, Any]]):
    """Prepared rows as the ``Trainer`` takes them, decoded beforehand."""

    def __init__(self, data: PreparedData) -> None:
        split = data.split("train")
        self.ids = split.read(np.arange(split.num_rows), 0).input_ids.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index]}


class _Clock(TrainerCallback):
    """Notes the time at the end of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def trainer_seconds(
    data: PreparedData, rows: _Rows, out: Path, steps: int, threads: int
) -> list[float]:
    """Seconds between the ends of successive steps of a ``Trainer``."""
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(data.tokenizer_path)
    built = build_model(MODEL, tokenizer, row_length=ROW_LENGTH, seed=0, attention="row")
    clock = _Clock()
    trainer = Trainer(
        model=AutoModelForMaskedLM.from_config(built.config),
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=ROWS_PER_STEP,
            learning_rate=5e-4,
            optim="adamw_torch_fused",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[clock],
    )
    trainer.train()
    return np.diff(clock.ends).tolist()


def measure(steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Medians over all counted steps; ``train_vs_hf`` is the ratio of the two speeds."""
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_data(root / "data", num_rows=ROWS_PER_STEP * 64)
        rows = _Rows(data)
        for number in range(rounds):
            ours += our_seconds(data, root / f"ours-{number}", steps + 1, threads)[1:]
            theirs += trainer_seconds(data, rows, root / "trainer", steps + 2, threads)[1:]
    return {
        "train_vs_hf": median(theirs) / median(ours),
        "tokens_per_second": TOKENS_PER_STEP / median(ours),
        "hf_tokens_per_second": TOKENS_PER_STEP / median(theirs),
        "steps_counted": len(ours),
        "threads": threads,
        "torch": torch.__version__,
    }


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Training speed beside transformers' Trainer.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=6, help="turns each side takes")
    chosen = parser.parse_args()
    result = measure(chosen.steps, chosen.rounds, chosen.threads)
    print("BERT 4 × 256, vocabulary 16k, 32 rows of 128 tokens, float32, 15 % masked")
    print(f"  chronomask           {result['tokens_per_second']:>8,.0f} tokens/s")
    print(f"  transformers Trainer {result['hf_tokens_per_second']:>8,.0f} tokens/s")
    print(f"  ratio                {result['train_vs_hf']:>8.2f}")
    if chosen.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
