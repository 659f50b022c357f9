"""Training and fine-tuning on a CUDA device, figure by figure. ``benchmarks/gpu.sh`` runs it.

Every figure runs in a process of its own, with a time limit of its own, the most important first. What is
known is printed and added to ``figures.jsonl`` at once, also the speed so far of a run that is not over, so a
call that is cut off loses nothing. The end is a table against floors and aims, and one JSON object. Nine
minutes are too few for all figures: ``--call 1`` has the most important, and others follow.

Text is made up. Rows are packed; the ratio falls from 0.30 to 0.15 and part-of-speech weights are learnt;
bfloat16, compiled, no attention dropout. ``--toy`` runs the same code on a CPU, in one process, at sizes that
say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.gpu_apart import Told, command_of, measure_apart, plain, tell_into
from benchmarks.gpu_small import ONES, WAYS, of_finetuning, of_many_runs, of_threads, quit_mps
from benchmarks.gpu_work import (
    BF16_WEIGHTS,
    MASKING,
    ROOT,
    SO_FAR,
    Figures,
    Setting,
    Tell,
    at_toy_size,
    of_profile,
    of_training,
    settle,
    speed_so_far,
)
from benchmarks.sides import Examples, Work, run_config, trainer
from chronomask.data.folder import PreparedData
from chronomask.model.attention import documents_attention
from chronomask.model.documents import backbone_inputs
from chronomask.runs.layout import RunFolder
from chronomask.train.distributed import World
from chronomask.train.run import open_run

CUDA_TESTS = [
    "tests/model/test_attention.py",
    "tests/model/test_kernels.py",
    "tests/model/test_causal.py",
    "tests/model/test_compiled_dropout.py",
    "tests/model/test_device.py",
    "tests/model/test_modernbert.py",
    "tests/evaluate/test_recorded.py",
    "tests/train/test_no_waiting.py",
    "tests/train/test_numerics.py",
    "tests/masking/test_masker.py",
    "tests/masking/test_rows.py",
]
GRAPH_TESTS = ["tests/train/test_compiled_shapes.py"]
"""Files with tests marked ``gpu``."""
TESTS_NEED = ("pytest", "hypothesis", "scipy", "pyarrow", "zstandard")
"""What the tests import and the other figures do not."""


def of_tests(name: str, files: list[str]) -> Callable[[Setting], None]:
    """Whether the tests that need CUDA pass; at toy size, whether those of the choice of kernels do.

    Each that fails is told at once, and at the end why. All that pytest prints is printed.
    """

    def measure(setting: Setting) -> None:
        if setting.toy and name != "cuda_tests":
            return setting.tell(f"{name}_left_out", "it needs CUDA; cuda_tests runs the same code")
        if lacking := [each for each in TESTS_NEED if find_spec(each) is None]:
            return setting.tell(f"{name}_left_out", f"{sys.executable} lacks {' '.join(lacking)}")
        command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider"]
        toy = ["tests/model/test_kernels.py", "-k", "switched_off"]
        command += toy if setting.toy else ["-m", "gpu", *files]
        failed: list[str] = []
        told, last = [], ""
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as pytest:  # fmt: skip
            assert pytest.stdout is not None
            for line in pytest.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
                if line.startswith(("FAILED ", "ERROR ")):  # its summary, with reasons
                    told.append(line.strip())
                elif " FAILED" in line or " ERROR" in line:
                    failed.append(line.split()[0])
                    setting.tell(f"{name}_failures{SO_FAR}", failed)
        setting.tell(f"{name}_end", last.strip("= "))
        if told:
            setting.tell(f"{name}_failures", told)
        return setting.tell(name, "failed" if pytest.returncode else "passed")

    return measure


def of_trainer(compiled: bool) -> Callable[[Setting], None]:
    """Speed of transformers' ``Trainer`` on the rows of ``bert_base``."""
    name = f"trainer_{'compiled' if compiled else 'eager'}"

    def measure(setting: Setting) -> None:
        work, data = setting.work("bert_base"), setting.data("bert_base")
        work = replace(work, micro_batches=2 * work.micro_batches)  # it needs more memory
        backend = None if not compiled else "eager" if setting.toy else "inductor"
        taken = trainer(
            work, data, Examples.of(data), setting.folder("trainer"), setting.steps_or(18),
            compiled=backend, after_step=speed_so_far(setting, name, work.tokens),
        )  # fmt: skip
        speed = statistics.median(step.tokens / step.seconds for step in taken[2:])
        setting.tell(f"{name}_tokens_per_second", speed)

    return measure


def of_masking(setting: Setting) -> None:
    """Error of packed attention, and median seconds to mask a step's rows, all micro-batches."""
    work, data = setting.work("bert_base"), setting.data("bert_base")
    with at_toy_size(setting):
        setting.tell("varlen_error", varlen_error(work, data))
    config = run_config(work, data, 8, masking=MASKING, compile="never")
    world = World(0, 1, torch.device(work.device))
    run, _ = open_run(config, RunFolder(setting.folder("masks")), world, resume=False)
    taken = []
    for step in range(8):
        rows = run.loader.rows_at(step)
        settle(work)
        began = time.perf_counter()
        for part in rows.micro_batches(work.micro_batches):
            run.forward.mask(part, run.masker, step / 8)
        settle(work)
        taken.append(time.perf_counter() - began)
    setting.tell("masking_seconds", statistics.median(taken[2:]))


class Figure(NamedTuple):
    """How something is measured, and for how many seconds at most, imports and compilation included."""

    measure: Callable[[Setting], None]
    seconds: int


def _of_bf16_weights(name: str, steps: int) -> Callable[[Setting], None]:
    return of_training(name, f"{name}_bf16", steps=steps, **BF16_WEIGHTS)


CALLS = (
    {
        "bert_base_bf16": Figure(_of_bf16_weights("bert_base", 40), 150),
        "tests": Figure(of_tests("cuda_tests", CUDA_TESTS), 130),
        "trainer_eager": Figure(of_trainer(compiled=False), 65),
        "trainer_compiled": Figure(of_trainer(compiled=True), 115),
        "masking": Figure(of_masking, 50),
    },
    {
        "modernbert_base_bf16": Figure(_of_bf16_weights("modernbert_base", 32), 185),
        "bert_large_bf16": Figure(_of_bf16_weights("bert_large", 24), 210),
        "profile": Figure(of_profile("modernbert_base", "bert_base"), 115),
    },
    {
        "small_graphs": Figure(
            of_training("small", "small_graphs", steps=100, compile="graphs"), 65
        ),
        "many_runs_graphs": Figure(of_many_runs("graphs"), 105),
        "small": Figure(of_training("small", steps=100), 50),
        "many_runs": Figure(of_many_runs(), 90),
        "many_runs_mps": Figure(of_many_runs("mps"), 90),
        "threads": Figure(of_threads, 45),
        "graph_tests": Figure(of_tests("graph_tests", GRAPH_TESTS), 65),
    },
    {
        "squad": Figure(of_finetuning("squad"), 120),
        "sst2": Figure(of_finetuning("sst2"), 110),
        "bert_base": Figure(of_training("bert_base"), 140),
        "bert_base_row": Figure(of_training("bert_base", "bert_base_row", attention="row"), 140),
    },
)
"""What is measured, the most important first, in calls that have time for all of it. What is compared stands
in one call. One small run goes before many, which then find compiled what it compiled."""
ALONE = {
    "modernbert_base": Figure(of_training("modernbert_base", steps=32), 185),
    "bert_base_no_dropout": Figure(of_training("bert_base_no_dropout", **BF16_WEIGHTS), 150),
}
"""What no call has time for: to be asked for by name."""
FIGURES = {name: figure for call in CALLS for name, figure in call.items()} | ALONE
SECONDS = 540
"""Of a call, from its start on: what cannot get half its time by then is left out by name."""
TO_BEGIN = 30
"""Of them, what a call takes before its first figure and after its last."""
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


def measure_all(
    setting: Setting, names: Iterable[str], log: Path, deadline: float = math.inf
) -> Figures:
    """Every figure by name; ``setting`` hears of each the moment it is known, and of what follows from it.

    ``log``: gets what the processes of the figures print; ``deadline``: when all must be over, in seconds as
    ``time.time`` counts them.
    """
    found: Figures = {}

    def note(name: str, value: Any) -> None:
        found[name] = value
        setting.tell(name, value)

    for name in names:
        figure, began = FIGURES[name], time.time()
        left = deadline - began
        if setting.toy:
            figure.measure(replace(setting, tell=note))
        elif left < figure.seconds / 2:
            note(f"{name}_left_out", f"too little of {SECONDS} s was left: --only {name}")
        else:
            told, runs = Told(setting.runs / f"{name}.jsonl"), setting.runs / name
            runs.mkdir()
            command = command_of(replace(setting, runs=runs), name, told)
            try:
                measure_apart(command, name, min(figure.seconds, left), told, log, note)
            finally:
                quit_mps(runs)
                shutil.rmtree(runs, ignore_errors=True)  # checkpoints of gigabytes
        for follows, value in derived(found).items():
            if found.get(follows) != value:
                note(follows, value)
        if f"{name}_left_out" not in found:
            note(f"{name}_took_seconds", time.time() - began)
    return found


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


def varlen_error(work: Work, data: PreparedData) -> float:
    """Packed attention against SDPA on every document by itself, forwards; over the largest value."""
    rows = data.split("train").read(np.arange(4), 0)
    inputs = backbone_inputs(rows, "documents", data.manifest.pad_token_id, 0, work.device)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    shape = (rows.num_rows, 4, rows.row_length, 64)
    query, key, value = (torch.randn(shape, device=work.device).to(dtype) for _ in range(3))
    module = torch.nn.Module()
    packed, _ = documents_attention(module, query, key, value, None, documents=inputs["documents"])
    worst, largest = 0.0, 0.0
    for first, last in zip(rows.cu_seqlens[:-1], rows.cu_seqlens[1:], strict=True):
        row, start = divmod(int(first), rows.row_length)
        place = slice(start, start + int(last - first))
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[row : row + 1, :, place].float(),
            key[row : row + 1, :, place].float(),
            value[row : row + 1, :, place].float(),
        )
        found = packed[row : row + 1, place].transpose(1, 2).float()
        worst = max(worst, float((found - alone).abs().max()))
        largest = max(largest, float(alone.abs().max()))
    return worst / largest


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


def main() -> None:
    """Print each figure as it is known, then a table; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="Training on CUDA.")
    parser.add_argument("--toy", action="store_true", help="a CPU at toy size: does it run?")
    parser.add_argument("--steps", type=int, help="steps of every run, instead of its own number")
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--call", type=int, choices=range(1, len(CALLS) + 1),
        help="the figures that one of several calls has time for",
    )  # fmt: skip
    names.add_argument(
        "--only", action="extend", nargs="+", choices=FIGURES, metavar="NAME",
        help=", ".join(FIGURES),
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="folder for figures.jsonl, gpu.json, table.txt and log.txt"
    )
    for hidden in ("--tell", "--runs"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--figure", choices=[*FIGURES, *ONES], help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.toy and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --toy rehearses on a CPU")
    if chosen.figure:  # one of several processes
        measure = ONES.get(chosen.figure) or FIGURES[chosen.figure].measure
        measure(Setting(chosen.toy, chosen.runs, tell_into(chosen.tell), chosen.steps))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing runs on
    kept = nullcontext(chosen.out) if chosen.out else tempfile.TemporaryDirectory()
    of_call = CALLS[chosen.call - 1] if chosen.call else FIGURES
    with kept as out, tempfile.TemporaryDirectory(prefix="gpu-") as runs:
        setting = Setting(chosen.toy, Path(runs), tell_all(Path(out)), chosen.steps)
        found = report(setting, Path(out), chosen.only or of_call, chosen.began + SECONDS)
    if any(name.endswith("_failed") or value == "failed" for name, value in found.items()):
        raise SystemExit(1)


def tell_all(out: Path) -> Tell:
    """What prints a figure and adds it to ``figures.jsonl`` of ``out`` at once."""
    out.mkdir(parents=True, exist_ok=True)

    def tell(name: str, value: Any) -> None:
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        if isinstance(value, list):
            shown = "".join(f"\n  {each}" for each in value)
        print(f"{name:<46}{shown}", flush=True)
        with (out / "figures.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({name: plain(value)}) + "\n")

    return tell


def report(setting: Setting, out: Path, names: Iterable[str], deadline: float) -> Figures:
    """Measure; then print and write the table and one JSON object. What was found."""
    setting.tell("device", "cpu" if setting.toy else torch.cuda.get_device_name())
    setting.tell("torch", torch.__version__)
    setting.tell("transformers", transformers.__version__)
    found = measure_all(setting, dict.fromkeys(names), out / "log.txt", deadline)
    text = json.dumps({name: plain(value) for name, value in found.items()})
    (out / "table.txt").write_text(table(found) + "\n", encoding="utf-8")
    (out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    print(table(found), text, sep="\n")
    return found


if __name__ == "__main__":
    main()
