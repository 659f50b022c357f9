"""The losses of 50 steps of every arm, as this version computes them, kept in ``tests/train/golden/``.

    python -m tests.support.golden_runs         # writes them anew, after a change meant to change them
    python -m tests.support.golden_runs ARM     # writes those of the arms named

A file holds the loss of every step and the versions that computed it. Data and initial weights are
made on the spot: the data from PCG64's raw numbers, by nothing of ``prepare``; the weights by torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.data.folder import PreparedData
from chronomask.data.ngrams import add_ngrams, find_ngrams
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.types import UPOS_CLASSES
from tests.support.tiny_models import tiny_bert

FOLDER = Path(__file__).parents[1] / "train" / "golden"
STEPS, ROWS, ROW_LENGTH, VOCABULARY = 50, 96, 32, 203
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

MRD: dict[str, Any] = {"ratio": {"kind": "linear_decay", "base": 0.15}}
PTW: dict[str, Any] = {"content": {"kind": "ptw", "ema_decay": 0.9, "strength": 1.0}}
FIXED: dict[str, Any] = {"ratio": {"kind": "constant", "base": 0.15}, "strategy": {"kind": "token"}}
ARMS: dict[str, dict[str, Any]] = {
    "fixed": FIXED,
    "mrd-linear": MRD,
    "mrd-cosine": {"ratio": {"kind": "cosine_decay", "base": 0.15}},
    "ptw": FIXED | PTW,
    "ptw-faithful": {
        "ratio": {"kind": "constant", "base": 0.15},
        "content": {"kind": "ptw_faithful", "ema_decay": 0.9},
    },
    "mrd-ptw": MRD | PTW,
    "whole-word": FIXED | {"strategy": {"kind": "whole_word"}},
    "span": FIXED | {"strategy": {"kind": "span"}},
    "decay-0.30-0.15": {"ratio": {"kind": "linear", "start": 0.3, "end": 0.15}},
    "ptw-quarter": FIXED | {"content": {"kind": "ptw", "ema_decay": 0.9}},
    "ptw-fading-in": FIXED
    | {
        "content": {
            "kind": "ptw",
            "ema_decay": 0.9,
            "strength": {"kind": "linear", "start": 0, "end": 1},
        }
    },
    "ptw-nats": FIXED
    | {
        "content": {
            "kind": "ptw",
            "ema_decay": 0.9,
            "strength": 1.0,
            "weight_map": {"kind": "nats"},
        }
    },
    "learning-progress": FIXED
    | {"content": {"kind": "learning_progress", "ema_decay": 0.95, "fast_decay": 0.8}},
    "reducible-loss": FIXED
    | {"content": {"kind": "reducible_loss", "ema_decay": 0.95, "fast_decay": 0.8}},
    "bimodal-rows": {
        "ratio": {
            "kind": "mixture_rows",
            "parts": [
                {"share": 0.6, "law": {"kind": "normal_rows", "mean": 0.12, "std": 0.02}},
                {
                    "share": 0.4,
                    "law": {
                        "kind": "normal_rows",
                        "mean": {"kind": "linear", "start": 0.4, "end": 0.85},
                        "std": 0.08,
                    },
                },
            ],
        },
        "loss_weight": {"kind": "derivative", "exponent": 0.1},
    },
    "diffusion": {
        "ratio": {"kind": "uniform_rows", "high": {"kind": "constant", "base": 1.0}},
        "strategy": {"kind": "token"},
        "loss_weight": {"kind": "inverse_ratio"},
        "loss_per": "token",
        "mask_replace_prob": 1.0,
        "random_replace_prob": 0.0,
    },
    "diffusion-cosine": {
        "ratio": {"kind": "cosine_rows", "high": {"kind": "constant", "base": 1.0}},
        "strategy": {"kind": "token"},
        "loss_weight": {"kind": "derivative"},
        "loss_per": "token",
        "mask_replace_prob": 1.0,
        "random_replace_prob": 0.0,
    },
    "rows-alike": {
        "ratio": {"kind": "normal_rows", "mean": 0.2, "std": 0.1},
        "loss_per": "row",
    },
    "phases-of-strategy": {
        "ratio": {"kind": "constant", "base": 0.15},
        "strategy": {
            "kind": "phased",
            "phases": [
                {"until": 0.3, "strategy": {"kind": "token"}},
                {"until": 0.6, "strategy": {"kind": "whole_word"}},
                {"until": 1, "strategy": {"kind": "span"}},
            ],
        },
    },
    "moving-strategies": {
        "ratio": {"kind": "constant", "base": 0.15},
        "strategy": {
            "kind": "mixed",
            "parts": [
                {
                    "share": {"kind": "linear", "start": 1, "end": 0},
                    "strategy": {"kind": "token"},
                },
                {"share": {"kind": "linear", "start": 0, "end": 1}, "strategy": {"kind": "span"}},
            ],
        },
    },
    "pmi": FIXED | {"strategy": {"kind": "pmi"}},
    "explored": {
        "ratio": {"kind": "constant", "base": 0.15},
        "strategy": {"kind": "explored", "epochs": 6},
    },
    "fixed-weights": FIXED
    | {"content": {"kind": "fixed", "weights": {"NOUN": 0.9, "PUNCT": 0.1}, "other": 0.4}},
    "model-scores": FIXED | {"content": {"kind": "model_scores", "every": 10}},
    "token-probability": FIXED | {"content": {"kind": "token_probability", "every": 5}},
}
"""Masking of each arm; what is not named is the default."""

RUNS: dict[str, dict[str, Any]] = {
    "causal-first": {
        "masking": {"ratio": {"kind": "constant", "base": 0.3}},
        "objective": {"kind": "causal_first"},
    },
    "gpt-bert": {
        "masking": {"ratio": {"kind": "linear", "start": 0.3, "end": 0.15}},
        "objective": {"kind": "hybrid"},
    },
    "late-masks": {
        "masking": {"ratio": {"kind": "linear", "start": 0.5, "end": 0.15}},
        "late_masks": {"layer": {"kind": "linear", "start": 0.5, "end": 0}},
    },
    "z-loss": {"z_loss": 0.01},
    "rate-follows-labels": {
        "masking": MRD,
        "learning_rate": {
            "kind": "linear",
            "peak": 5e-3,
            "warmup_steps": 5,
            "follow_labels": "sqrt",
        },
    },
}
"""What each further arm changes in the run; masking is that of ``fixed`` where it is not named."""


def losses(arm: str, data: Path, out: Path) -> list[float]:
    """The loss of every step of an arm, of next tokens where none is masked."""
    config = RunConfig.parse(
        {
            "data": str(data),
            "model": tiny_bert(
                ROW_LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            ),
            "masking": ARMS.get(arm, FIXED),
            "learning_rate": {"kind": "linear", "peak": 5e-3, "warmup_steps": 5},
            "steps": STEPS,
            "rows_per_step": 16,
            "device": "cpu",
            "threads": 1,
            "log_every": 1,
            "checkpoint": {"every": 0},
            **RUNS.get(arm, {}),
        }
    )
    pretrain(config, out, progress=False)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["causal_loss"] if line["loss"] is None else line["loss"] for line in lines]


def make_data(folder: Path, *, ngrams: bool = False) -> Path:
    """Prepared rows in which most tokens follow from the one before, on demand with their collocations."""
    words = {token: number for number, token in enumerate(SPECIALS)}
    words |= {f"w{number}": number for number in range(len(SPECIALS), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIALS, strict=True))
    ).save_pretrained(folder / "tokenizer")

    ordinary = VOCABULARY - len(SPECIALS)
    token, ids = 0, []
    for raw in np.random.PCG64(1).random_raw(ROWS * ROW_LENGTH).tolist():
        token = (raw >> 32) ** 2 * ordinary >> 64 if raw % 5 == 0 else (3 * token + 1) % ordinary
        ids.append(len(SPECIALS) + token)
    ids = np.array(ids)
    annotation = 1 + ids % (len(UPOS_CLASSES) - 1)
    annotation[ids % 4 > 0] |= WORD_START
    begins = np.union1d(np.arange(0, ids.size, ROW_LENGTH), np.arange(0, ids.size, 45))
    ids[begins], annotation[begins] = 2, SPECIAL
    annotation[np.minimum(begins + 1, ids.size - 1)] |= WORD_START
    writer = RowWriter(folder, "train", ROW_LENGTH, VOCABULARY)
    bounds = begins[begins % ROW_LENGTH > 0]
    shape = (ROWS, ROW_LENGTH)
    writer.write(ids.reshape(shape), annotation.reshape(shape), bounds, ids.size)
    empty = RowWriter(folder, "held_out", ROW_LENGTH, VOCABULARY)
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
    entries = {"train": writer.finish(begins.size), "held_out": empty.finish(0)}
    write_manifest(folder, values, entries)
    if not ngrams:
        return folder
    data = PreparedData.open(folder)
    train = data.split("train")
    add_ngrams(data, find_ngrams(train, min_count=3, coverage=0.56, min_pmi=0, progress=False))
    return folder


def main() -> None:
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", ngrams=True)
        for arm in sys.argv[1:] or (*ARMS, *RUNS):
            values = {"versions": versions, "loss": losses(arm, data, Path(folder) / arm)}
            (FOLDER / f"{arm}.json").write_text(json.dumps(values, indent=1) + "\n")
            print(f"{arm}: {values['loss'][0]:.4f} → {values['loss'][-1]:.4f}")


if __name__ == "__main__":
    main()
