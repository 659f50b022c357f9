"""The benchmark of a start: nothing heavy is loaded before a request has been checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.startup import COMMANDS, REFUSALS
from chronomask.cli import app
from tests.support.processes import HANG

ROOT = Path(__file__).parents[2]


def leaves(command: Any, words: tuple[str, ...] = ()) -> set[str]:
    """Every command that does something, by its words."""
    inner = getattr(command, "commands", {})
    return {" ".join(words)} if not inner else set().union(
        *(leaves(below, (*words, name)) for name, below in inner.items())
    )  # fmt: skip


def test_every_command_is_measured() -> None:
    every = leaves(typer.main.get_command(app))
    assert set(COMMANDS) == every
    assert set(REFUSALS) == every
    assert all(REFUSALS.values())


@pytest.mark.slow
def test_no_refusal_loads_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", "--toy", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["torch_in_sys_modules"] is False
    assert figures["late"] == []
    assert len(figures["refusals"]) == sum(map(len, REFUSALS.values()))
    for name in ("import_ms", "help_ms", "command_help_ms", "refusal_cpu_s"):
        assert figures[name] > 0
    assert figures["src_files"] > 100
    assert figures["src_lines"] > 100 * figures["src_files"]
