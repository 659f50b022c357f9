"""Writes the report: one HTML file that needs nothing else, and a CSV file beside it per figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from chronomask.report.class_figures import class_loss, class_weight, final_class_loss
from chronomask.report.downloads import Cell, figure_values, write_csv
from chronomask.report.figures import (
    arm_legend,
    cell,
    difference_from_first,
    masking_ratio,
    predicted_tokens,
    ratio_text,
    validation_loss,
)
from chronomask.report.render import render
from chronomask.report.summary import data_fingerprints, summary_sentences
from chronomask.report.tables import (
    ArmRow,
    arm_row,
    config_differences,
    duration,
    flatten,
    number,
    thousands,
)
from chronomask.runs.read import Run, read_runs
from chronomask.storage import write_text

__all__ = ["write_report"]

_FIGURES = (
    validation_loss,
    difference_from_first,
    masking_ratio,
    predicted_tokens,
    class_loss,
    class_weight,
    final_class_loss,
)


def write_report(
    runs: Sequence[str | Path], out: str | Path, title: str = "Masking over time"
) -> Path:
    """Write ``out/report.html`` and ``out/csv/*.csv`` from run folders; returns the page's path.

    The first run is the baseline that others are compared with. The same results files give the
    same bytes. Raises as :func:`chronomask.runs.read.read_runs` and
    :func:`chronomask.storage.write_text` do.
    """
    out = Path(out)
    read = read_runs(runs)
    rows = [arm_row(run) for run in read]
    pictures = [picture for draw in _FIGURES if (picture := draw(read)) is not None]
    html = render(
        Path(__file__).with_name("template.html"),
        title=title,
        sentences=summary_sentences(read, rows),
        notices=_notices(read),
        ratio=ratio_text(read),
        arms=[
            {"legend": entry, "cells": _arm_cells(row), "complete": row.complete}
            for row, entry in zip(rows, arm_legend(read), strict=True)
        ],
        arms_download=write_csv(out, "arms", *_arm_table(rows)),
        figures=[figure_values(out, picture) for picture in pictures],
        arm_names=[run.name for run in read],
        differences=config_differences(read),
        environments=_environments(read),
        fingerprints=data_fingerprints(read),
        parameters=_parameters(read),
    )
    path = out / "report.html"
    write_text(path, html)
    return path


def _arm_table(rows: Sequence[ArmRow]) -> tuple[list[str], list[list[Cell]]]:
    columns = [field.name for field in fields(ArmRow)]
    cells: list[list[Cell]] = [
        [cell(value) if isinstance(value, float) else value for value in asdict(row).values()]
        for row in rows
    ]
    return columns, cells


def _arm_cells(row: ArmRow) -> list[str]:
    """The row as the page shows it, in the order of the template's headings."""
    return [
        number(row.validation_loss, "{:.3f}"),
        number(100 * row.validation_accuracy, "{:.1f} %"),
        thousands(row.masked_tokens),
        thousands(row.tokens_seen),
        thousands(row.steps),
        number(100 * row.mean_ratio_asked, "{:.1f} %"),
        number(100 * row.mean_ratio_achieved, "{:.1f} %"),
        thousands(row.tokens_per_second),
        duration(row.seconds),
    ]


def _notices(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before trusting the page."""
    notices = [f"{run.name}: {notice}." for run in runs for notice in run.notices]
    if len(data_fingerprints(runs)) > 1:
        notices.append(
            "These runs were not trained on the same prepared data: do not compare their losses."
        )
    if " or " in ratio_text(runs):
        notices.append(
            "These runs were not validated at the same masking ratio: do not compare their losses."
        )
    return notices


def _environments(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Keys of the runs' environments; values that differ between runs are all listed."""
    flat = [dict(flatten(run.environment)) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    return [
        (key, " | ".join(dict.fromkeys(values[key] for values in flat if key in values)))
        for key in keys
    ]


def _parameters(runs: Sequence[Run]) -> list[str]:
    found = (run.summary.get("parameters") for run in runs if run.summary)
    return list(dict.fromkeys(f"{value:,}" for value in found if isinstance(value, int)))
