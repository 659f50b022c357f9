"""The five yardsticks of every arm: as a comparison holds them, as tables of a page, as a CSV file.

Each is a loss over all words, over the words of a group, and over those of a part of speech. The mean of the
five stands beside them, of a group too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from chronomask.report.comparison import Numbers
from chronomask.report.render import Cell, Download, write_csv
from chronomask.runs.read import Run
from chronomask.yardsticks import GROUPS, YARDSTICKS

__all__ = ["MEAN", "last_yardsticks", "list_yardsticks", "yardstick_tables", "yardsticks_csv"]

MEAN = "mean"
"""Where a yardstick is named: the mean of all five."""
_PARTS = "Parts of speech, mean of the five"
_HEADINGS = {
    MEAN: "mean",
    **{own.name: f"{100 * own.ratio:g} %" if own.ratio else "single mask" for own in YARDSTICKS},
}
"""Columns of a table, the mean first."""


def list_yardsticks(runs: Mapping[str, Mapping[int, Run]]) -> list[Numbers]:
    """What the last validations say of every yardstick and part of the words; nothing where a run lacks it.

    ``runs``: arm → seed → run. Of each ``yardstick`` (:data:`MEAN` too) and ``part`` ("" for all words):
    ``num_predictions`` of a run, and of every arm the ``mean`` over its number of ``seeds`` and their
    ``spread``, in nats.
    """
    values = {
        arm: {seed: last_yardsticks(run, "yardstick_loss") for seed, run in own.items()}
        for arm, own in runs.items()
    }
    every = [found for own in values.values() for found in own.values()]
    if not every:
        return []
    first = next(run for own in runs.values() for run in own.values())
    counts = last_yardsticks(first, "yardstick_count")
    shared = [name for name in every[0] if all(name in found for found in every)]
    parts = dict.fromkeys(name.partition("/")[2] for name in shared)
    entries = []
    for yardstick in _HEADINGS:
        for part in parts:
            names = [
                f"{own.name}/{part}".rstrip("/")
                for own in YARDSTICKS
                if yardstick in (MEAN, own.name)
            ]
            if not set(names) <= set(shared):
                continue
            arms = {}
            for arm, own in values.items():
                losses = [float(np.mean([found[name] for name in names])) for found in own.values()]
                spread = float(np.std(losses, ddof=1)) if len(losses) > 1 else None
                arms[arm] = {"mean": float(np.mean(losses)), "spread": spread, "seeds": len(losses)}
            number = int(sum(counts.get(name, 0) for name in names))
            entries.append(
                {"yardstick": yardstick, "part": part, "num_predictions": number, "arms": arms}
            )
    return entries


def last_yardsticks(run: Run, key: str) -> dict[str, float]:
    """A run's last value of ``key`` for every yardstick and part, such as ``single`` or ``words-15/NOUN``."""
    found = {}
    for name, values in run.validation.per_class.get(key, {}).items():
        there = values[np.isfinite(values)]
        if len(there):
            found[name] = float(there[-1])
    return found


def yardstick_tables(study: Numbers, arms: Mapping[str, int]) -> list[Numbers]:
    """The arms on every yardstick, with the means of groups of words beside; then a table for each group, and
    one with the mean of the yardsticks for every part of speech.

    Empty where nothing was measured. ``arms``: name → place among the arms.
    """
    found = {(one["yardstick"], one["part"]): one for one in study.get("yardsticks", ())}
    groups = [group for group in GROUPS if (MEAN, group) in found]
    wanted = {
        "All words": [
            *((_HEADINGS[name], found.get((name, ""))) for name in _HEADINGS),
            *((group, found[MEAN, group]) for group in groups),
        ],
        **{
            f"{group[:1].upper()}{group[1:]}": [
                (_HEADINGS[name], found.get((name, group))) for name in _HEADINGS
            ]
            for group in groups
        },
    }
    if groups:
        parts = sorted(part for name, part in found if name == MEAN and part not in ("", *GROUPS))
        wanted[_PARTS] = [(part, found[MEAN, part]) for part in parts]
    tables = []
    for title, asked in wanted.items():
        columns = {heading: one for heading, one in asked if one is not None}
        if columns:
            tables.append({"title": title, **_table(columns, arms, study)})
    return tables


def _table(columns: Mapping[str, Numbers], arms: Mapping[str, int], study: Numbers) -> Numbers:
    """Headings and rows; the best value of a column, as it is written, is marked where there are several that
    compare.
    """
    first = next(iter(columns.values()))
    names = [name for name in arms if name in first["arms"]]
    written = [[f"{one['arms'][name]['mean']:.3f}" for name in names] for one in columns.values()]
    several = len(names) > 1 and study.get("losses_compare", True)
    best = [min(column, key=float) if several else "" for column in written]
    return {
        "headings": [
            {"title": heading, "unit": f"{one['num_predictions']:,}"}
            for heading, one in columns.items()
        ],
        "rows": [
            {
                "name": name,
                "cells": [
                    {"mean": column[row], "classes": "best" if column[row] == top else ""}
                    for column, top in zip(written, best, strict=True)
                ],
            }
            for row, name in enumerate(names)
        ],
    }


def yardsticks_csv(out: Path, study: Numbers) -> Download | None:
    """Every yardstick, part and arm with the spread over seeds, and every part of speech."""
    rows: list[list[Cell]] = [
        [
            one["yardstick"],
            one["part"] or "all",
            one["num_predictions"],
            arm,
            numbers["seeds"],
            numbers["mean"],
            numbers["spread"],
        ]
        for one in study.get("yardsticks", ())
        for arm, numbers in one["arms"].items()
    ]
    columns = [
        "yardstick", "part", "predictions", "arm", "pre_training_seeds", "mean", "spread",
    ]  # fmt: skip
    return write_csv(out, "yardsticks", columns, rows) if rows else None
