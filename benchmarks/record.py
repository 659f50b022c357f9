"""What a benchmark's figures were measured with: they mean nothing without it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chronomask import __version__

__all__ = ["as_json", "print_figures", "recorded"]

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "spacy", "datasets")


def as_json(figures: Mapping[str, Any]) -> str:
    """One JSON object: the figures, and under ``recorded`` when, where and with what they were measured."""
    return json.dumps(dict(figures) | {"recorded": recorded()})


def print_figures(figures: Mapping[str, Any], *, json_alone: bool) -> None:
    """Print the figures a line each, or as :func:`as_json` has them."""
    lines = [as_json(figures)] if json_alone else [f"{key}: {figures[key]}" for key in figures]
    print(*lines, sep="\n", flush=True)


def recorded() -> dict[str, Any]:
    """Date (UTC), command, machine and versions."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", spec.name if spec else Path(sys.argv[0]).stem, *sys.argv[1:]]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(word for word in words if word != "--json"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "device": _cuda_device()},
        "versions": {"python": platform.python_version(), "chronomask": __version__} | _versions(),
    }


def _processor() -> str:
    """The processor's model, as Linux names it; elsewhere the platform's word for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _cuda_device() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark that has not loaded it used no device
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
