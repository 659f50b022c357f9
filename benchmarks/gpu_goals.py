"""What the figures of a GPU should reach, what follows from several of them, and the table of both."""

from __future__ import annotations

from benchmarks.gpu_small import WAYS
from benchmarks.gpu_work import SO_FAR, Figures

__all__ = ["AT_MOST", "GOALS", "derived", "table"]

GOALS = {
    "bert_base_best_tokens_per_second": (700e3, 864e3),
    "bert_base_no_dropout_tokens_per_second": (700e3, 864e3),
    "modernbert_base_best_tokens_per_second": (450e3, 550e3),
    "bert_large_best_tokens_per_second": (200e3, 263e3),
    "train_vs_trainer_eager": (3.0, 4.0),
    "train_vs_trainer_compiled": (2.0, 2.5),
    "many_runs_best_tokens_per_second": (4e6, 8e6),
    "squad_vs_transformers": (2.0, 3.0),
    "sst2_vs_transformers": (2.0, 3.0),
    "row_vs_documents": (0.9, 1.0),
}
"""Floor and aim on one H100 or H200; the higher the better."""
AT_MOST = {
    "bert_base_best_masking_share": 0.005,
    "bert_base_best_recompiles": 0,
    "bert_base_best_data_wait_share": 0.001,
    "varlen_error": 0.02,
}
ENDS = ("failed", "cut_off", "left_out")
"""How a figure may end other than well, as its name says then."""


def derived(found: Figures) -> Figures:
    """What follows from several figures; of ways to do the same the fastest counts.

    What follows from a figure that is not final is not final, and its name says so.
    """
    made: Figures = {}
    ways = {name: (name, f"{name}_bf16") for name in ("bert_base", "modernbert_base", "bert_large")}
    for name, tried in (ways | {"many_runs": WAYS}).items():
        for so_far in ("", SO_FAR):
            speeds = {way: found.get(f"{way}_tokens_per_second{so_far}") for way in tried}
            if known := {way: speed for way, speed in speeds.items() if speed}:
                fastest = max(known, key=lambda way: known[way])
                made[f"{name}_fastest{so_far}"] = fastest
                made[f"{name}_best_tokens_per_second{so_far}"] = known[fastest]
                for figure in ("step_seconds", "masking_share", "recompiles", "data_wait_share"):
                    if f"{fastest}_{figure}" in found:
                        made[f"{name}_best_{figure}"] = found[f"{fastest}_{figure}"]
                break

    def compare(name: str, ours: str, theirs: list[str]) -> None:
        figures = found | made
        final = [figures.get(side) for side in (ours, *theirs)]
        own, *others = (
            value or figures.get(f"{side}{SO_FAR}")
            for value, side in zip(final, (ours, *theirs), strict=True)
        )
        if own and any(others):
            so_far = "" if all(final) else SO_FAR
            made[f"{name}{so_far}"] = own / max(value for value in others if value)

    for kind in ("eager", "compiled"):
        theirs = f"trainer_{kind}_tokens_per_second"
        compare(f"train_vs_trainer_{kind}", "bert_base_best_tokens_per_second", [theirs])
    for task in ("squad", "sst2"):
        theirs = [f"{task}_trainer_{kind}_examples_per_second" for kind in ("eager", "compiled")]
        compare(f"{task}_vs_transformers", f"{task}_examples_per_second", theirs)
    row = "bert_base_row_tokens_per_second"
    compare("row_vs_documents", row, ["bert_base_tokens_per_second"])
    if "bert_base_best_step_seconds" in made and "masking_seconds" in found:
        made["masking_host_share"] = found["masking_seconds"] / made["bert_base_best_step_seconds"]
    return made


def table(found: Figures) -> str:
    """The figures that have a goal, against it, and what failed, was cut off or left out."""
    lines = [f"{'figure':<46}{'found':>14}{'floor':>12}{'aim':>12}"]
    for name in (*GOALS, *AT_MOST):
        floor, aim = GOALS.get(name) or (None, AT_MOST[name])
        beside = "at most" if floor is None else f"{floor:,.4g}"
        value = found.get(name, found.get(f"{name}{SO_FAR}"))
        said, remarks = "not measured", ""
        if value is not None:
            said = f"{value:,.4g}"
            if floor is None and not value <= aim:  # neither is NaN
                remarks = "  above its limit"
            if floor is not None and not value >= floor:
                remarks = "  below its floor"
            remarks += "" if name in found else "  so far"
        lines.append(f"{name:<46}{said:>14}{beside:>12}{aim:>12,.4g}{remarks}")
    for end in ENDS:
        so_ended = [name for name in found if name.endswith(f"_{end}") or found[name] == end]
        names = [name.removesuffix(f"_{end}") for name in so_ended]
        if names:
            lines.append(f"{end.replace('_', ' ')}: {', '.join(names)}")
    return "\n".join(lines)
