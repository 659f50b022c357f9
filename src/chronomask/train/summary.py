"""What a complete run leaves of itself: its summary."""

from __future__ import annotations

from typing import Any

from chronomask.runs.rules import expect, maskable_tokens, unknown_before
from chronomask.storage import write_json
from chronomask.train.log import RunLog
from chronomask.train.run import Run
from chronomask.train.state import State

__all__ = ["summarise"]


def summarise(run: Run, state: State, log: RunLog) -> dict[str, Any]:
    """The summary of a complete run, written to ``summary.json``."""
    summary = {
        "name": run.config.name,
        "steps": state.step,
        "tokens_seen": state.tokens_seen,
        "maskable_tokens": state.maskable_tokens,
        "masked_tokens": state.masked_tokens,
        "validation_loss": state.validation_loss,
        "validation_accuracy": state.validation_accuracy,
        **{f"validation_{key}": value for key, value in (state.yardsticks or {}).items()},
        **({} if run.average is None else {"averaged_steps": run.average.number}),
        **{f"raw_validation_{key}": value for key, value in (state.raw or {}).items()},
        "tokens_per_second": log.median_speed(),
        "seconds": state.seconds,
        "mean_ratio_asked": _mean_ratio_asked(run) if log.active else None,
        "parameters": run.num_parameters,
        "data_fingerprint": run.data.fingerprint,
        "checkpoint": str(run.folder.checkpoint(state.step).relative_to(run.folder.path)),
        "complete": True,
    }
    if log.active:
        write_json(run.folder.summary, summary)
    return summary


def _mean_ratio_asked(run: Run) -> float | None:
    """Over all tokens that could be masked, by the run's plan; None where it was not known beforehand."""
    if unknown_before(run.config) is not None:
        return None
    return expect(run.config, maskable_tokens(run.config, run.data)).mean_ratio
