"""Run folders as a training run writes them, with plausible numbers made from formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

# Class: (loss it ends at in nats, share of the text).
CLASSES = {
    "ADJ": (4.9, 0.07), "ADP": (2.1, 0.09), "ADV": (4.7, 0.04), "AUX": (2.2, 0.05),
    "CCONJ": (2.0, 0.03), "DET": (1.9, 0.09), "INTJ": (5.3, 0.0004), "NOUN": (5.0, 0.19),
    "NUM": (4.0, 0.02), "PART": (1.8, 0.02), "PRON": (2.6, 0.05), "PROPN": (5.2, 0.08),
    "PUNCT": (1.7, 0.13), "SCONJ": (2.9, 0.02), "SYM": (3.3, 0.001), "VERB": (4.8, 0.11),
    "X": (4.4, 0.0007),
}  # fmt: skip
TOKENS_PER_STEP = 4096


def write_run(
    folder: Path,
    name: str,
    ratio: Callable[[float], float] = lambda _: 0.15,
    *,
    weighted: bool = False,
    gain: float = 0.0,
    steps: int = 500,
    log_every: int = 10,
    validate_every: int = 50,
    finished: bool = True,
    seed: int = 0,
) -> Path:
    """A run folder whose losses fall from 9 nats, ``gain`` nats below the usual at the end."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(len(name))
    metrics, validation = [], []
    masked = 0
    for step in range(1, steps + 1):
        progress = (step - 1) / max(steps - 1, 1)
        masked += round(ratio(progress) * TOKENS_PER_STEP)
        if step % log_every == 0:
            metrics.append(_metric(step, progress, masked, ratio(progress), weighted, gain, noise))
        if step % validate_every == 0 or step == 1:
            validation.append(_validation(step, progress, masked, gain, noise))
    environment = {"chronomask": "0.1.0", "torch": "2.13.0", "git": {"dirty": False}}
    _write_lines(folder / "metrics.jsonl", metrics)
    _write_lines(folder / "validation.jsonl", validation)
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(name, seed, weighted, ratio)))
    if finished:
        summary = {
            "name": name,
            "steps": steps,
            "tokens_seen": steps * TOKENS_PER_STEP,
            "masked_tokens": masked,
            "validation_loss": validation[-1]["loss"],
            "validation_accuracy": validation[-1]["accuracy"],
            "tokens_per_second": float(np.median([line["tokens_per_second"] for line in metrics])),
            "seconds": metrics[-1]["seconds"],
            "parameters": 4_386_304,
            "data_fingerprint": "5f2a9c" * 8,
            "checkpoint": f"checkpoints/step-{steps:08d}",
            "complete": True,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def cosine(progress: float) -> float:
    """Cosine decay of the masking ratio around 0.15."""
    return 0.15 * (1 + math.cos(math.pi * progress)) + 0.02


def write_four_arms(folder: Path) -> list[Path]:
    """The four arms, each in its own folder below ``folder``."""
    return [
        write_run(folder / "fixed", "fixed 15 %"),
        write_run(folder / "mrd", "MRD cosine", cosine, gain=0.05),
        write_run(folder / "ptw", "PTW", weighted=True, gain=0.03),
        write_run(folder / "both", "MRD + PTW", cosine, weighted=True, gain=0.09),
    ]


def _metric(
    step: int,
    progress: float,
    masked: int,
    ratio: float,
    weighted: bool,
    gain: float,
    noise: np.random.Generator,
) -> dict[str, Any]:
    losses = {name: _loss(name, step, gain, noise) for name in CLASSES}
    mean, spread = np.mean(list(losses.values())), np.std(list(losses.values()))
    push = min(1.0, step / 150) if weighted else 0.0
    weights = {
        name: float(1 / (1 + np.exp(-2 * push * (loss - mean) / spread)))
        for name, loss in losses.items()
    }
    counts = {
        name: int(40_960 * ratio * share * 2 * weights[name])
        for name, (_, share) in CLASSES.items()
    }
    total = sum(counts.values())
    line = {
        "step": step,
        "progress": progress,
        "tokens_seen": step * TOKENS_PER_STEP,
        "masked_tokens": masked,
        "masking_ratio": ratio,
        "masking_ratio_achieved": ratio * float(1 + noise.normal(0, 0.012)),
        "loss": sum(losses[name] * counts[name] for name in counts) / total,
        "learning_rate": 1e-3 * (1 - progress),
        "gradient_norm": float(1 + noise.exponential(0.2)),
        "tokens_per_second": float(21_000 + noise.normal(0, 300)),
        "predicted_tokens_per_second": float(3_000 + noise.normal(0, 50)),
        "data_wait_share": 0.01,
        "seconds": step * 0.195,
        "class_loss": losses,
        "class_accuracy": {name: 1 / (1 + loss) for name, loss in losses.items()},
        "class_count": counts,
    }
    return {**line, "class_weight": weights} if weighted else line


def _validation(
    step: int, progress: float, masked: int, gain: float, noise: np.random.Generator
) -> dict[str, Any]:
    losses = {name: _loss(name, step, gain, noise, scale=0.02) for name in CLASSES}
    counts = {name: round(20_000 * share) for name, (_, share) in CLASSES.items()}
    total = sum(counts.values())
    loss = sum(losses[name] * counts[name] for name in losses) / total
    return {
        "step": step,
        "tokens_seen": step * TOKENS_PER_STEP,
        "masked_tokens": masked,
        "seconds": step * 0.195 + 1.5 * progress,
        "masking_ratio": 0.15,
        "loss": loss,
        "accuracy": 1 / (1 + loss),
        "num_predicted": total,
        "class_loss": losses,
        "class_accuracy": {name: 1 / (1 + value) for name, value in losses.items()},
        "class_count": counts,
    }


def _loss(
    name: str, step: int, gain: float, noise: np.random.Generator, scale: float = 0.06
) -> float:
    end, share = CLASSES[name]
    fall = math.exp(-step / (60 + 25 * end)) if share > 0.002 else math.exp(-step / 300)
    loss = (end - gain * min(1.0, step / 200)) + (9.0 - end) * fall
    return float(loss + noise.normal(0, scale + 0.003 / math.sqrt(share)))


def _config(
    name: str, seed: int, weighted: bool, ratio: Callable[[float], float]
) -> dict[str, Any]:
    schedule = {"kind": "cosine_decay", "base": 0.15} if ratio is cosine else {"kind": "constant"}
    content = {"kind": "ptw", "ema_decay": 0.999} if weighted else {"kind": "none"}
    masking = {"ratio": schedule, "content": content, "mask_replace_prob": 0.8}
    return {"name": name, "seed": seed, "steps": 500, "masking": masking}


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
