"""Training and fine-tuning on a CUDA device, figure by figure. ``benchmarks/gpu.sh`` runs it.

Every figure runs in a process of its own, with a limit of its own. Nine minutes hold them all because the
processes of a round get ready side by side: they import, compile and warm up, which is most of their time.
Then they measure one after the other, and nothing else runs. One that is not ready in time is ended, and
holds up no other. The most important are in the first round. What is known is printed and added to
``figures.jsonl`` at once, also the speed so far of a run that is not over: a call that is cut off loses
nothing. The end is a table against floors and aims, and one JSON object.

Text is made up. Rows are packed; the ratio falls from 0.30 to 0.15 and part-of-speech weights are learnt;
bfloat16, compiled, no attention dropout. ``--toy`` runs the same code on a CPU, in one process, at sizes that
say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.gpu_apart import Apart, Told, command_of, plain, tell_into
from benchmarks.gpu_goals import derived, table
from benchmarks.gpu_small import (
    ONES,
    of_finetuning,
    of_many_runs,
    of_threads,
    of_trainer_finetuning,
    quit_mps,
)
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
from chronomask.model.device import peak_flops
from chronomask.model.documents import backbone_inputs
from chronomask.runs.layout import RunFolder
from chronomask.train.distributed import World
from chronomask.train.open import open_run

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
        command += ["-n", "3"] if find_spec("xdist") and not setting.toy else []
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
                elif (" FAILED" in line or " ERROR" in line) and "::" in line:
                    failed.append(next(word for word in line.split() if "::" in word))
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
        so_far, done = speed_so_far(setting, name, work.tokens), 0

        def after_step() -> None:
            nonlocal done
            done += 1
            if done == 3:
                setting.wait_for_turn()
            elif done > 3:
                so_far()

        taken = trainer(
            work, data, Examples.of(data), setting.folder("trainer"), setting.steps_or(20),
            compiled=backend, after_step=after_step,
        )  # fmt: skip
        speed = statistics.median(step.tokens / step.seconds for step in taken[4:])
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
    setting.wait_for_turn()
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
    """How something is measured, and what it takes at most."""

    measure: Callable[[Setting], None]
    to_measure: int
    """seconds for what is measured, alone; 0: it does not wait for a turn"""
    gigabytes: int
    """of the device's memory while it gets ready, all its processes together; reckoned where not measured"""


class Round(NamedTuple):
    """Figures whose processes get ready side by side and then measure in turn."""

    to_get_ready: int
    """seconds for imports, compilation and warming up"""
    figures: dict[str, Figure]

    @property
    def seconds(self) -> int:
        """For all of it."""
        return self.to_get_ready + sum(each.to_measure for each in self.figures.values())

    def only(self, names: Container[str]) -> Round:
        """Those of its figures that are named."""
        chosen = {name: figure for name, figure in self.figures.items() if name in names}
        return self._replace(figures=chosen)


def _of_bf16_weights(name: str, steps: int) -> Callable[[Setting], None]:
    return of_training(name, f"{name}_bf16", steps=steps, **BF16_WEIGHTS)


ROUNDS = (
    Round(
        90,
        {
            "bert_base_bf16": Figure(_of_bf16_weights("bert_base", 40), 12, 25),
            "bert_base_no_dropout": Figure(
                of_training("bert_base_no_dropout", **BF16_WEIGHTS), 12, 24
            ),
            "modernbert_base_bf16": Figure(_of_bf16_weights("modernbert_base", 32), 15, 22),
            "trainer_eager": Figure(of_trainer(compiled=False), 14, 25),
            "trainer_compiled": Figure(of_trainer(compiled=True), 12, 20),
            "masking": Figure(of_masking, 4, 2),
        },
    ),
    Round(
        70,
        {
            "bert_large_bf16": Figure(_of_bf16_weights("bert_large", 24), 18, 22),
            "squad": Figure(of_finetuning("squad"), 4, 3),
            "squad_trainer_eager": Figure(of_trainer_finetuning("squad", compiled=False), 6, 3),
            "squad_trainer_compiled": Figure(of_trainer_finetuning("squad", compiled=True), 8, 3),
            "sst2": Figure(of_finetuning("sst2"), 4, 3),
            "sst2_trainer_eager": Figure(of_trainer_finetuning("sst2", compiled=False), 6, 3),
            "sst2_trainer_compiled": Figure(of_trainer_finetuning("sst2", compiled=True), 8, 3),
            "bert_base": Figure(of_training("bert_base"), 12, 30),
            "bert_base_row": Figure(
                of_training("bert_base", "bert_base_row", attention="row"), 12, 30
            ),
            "small_graphs": Figure(
                of_training("small", "small_graphs", steps=100, compile="graphs"), 5, 2
            ),
            "small": Figure(of_training("small", steps=100), 5, 2),
            "threads": Figure(of_threads, 10, 10),
        },
    ),
    Round(
        55,
        {
            "many_runs_graphs": Figure(of_many_runs("graphs"), 12, 16),
            "many_runs": Figure(of_many_runs(), 14, 16),
            "many_runs_mps": Figure(of_many_runs("mps"), 12, 16),
            "profile_bert_base": Figure(of_profile("bert_base"), 12, 25),
            "profile_modernbert_base": Figure(of_profile("modernbert_base"), 12, 22),
            "modernbert_base": Figure(of_training("modernbert_base", steps=32), 16, 28),
        },
    ),
    Round(
        60,
        {
            "tests": Figure(of_tests("cuda_tests", CUDA_TESTS), 0, 10),
            "graph_tests": Figure(of_tests("graph_tests", GRAPH_TESTS), 0, 10),
        },
    ),
)
"""What is measured, the most important first. Many small runs stand after one, whose compiled code they find.
The tests take minutes and have no turn: last, they hold up no figure and have all the time that is left."""
FIGURES = {name: figure for each in ROUNDS for name, figure in each.figures.items()}
SECONDS = 540
"""Of a call, from its start on: what cannot have half its time by then is left out by name."""


def measure_all(
    setting: Setting, rounds: Sequence[Round], log: Path, deadline: float = math.inf
) -> Figures:
    """Every figure by name; ``setting`` hears of each the moment it is known, and of what follows from it.

    ``log``: a folder for what the processes of the figures print; ``deadline``: when all must be over, in
    seconds as ``time.time`` counts them. What a round leaves of its time goes to those after it.
    """
    found: Figures = {}

    def note(name: str, value: Any) -> None:
        found[name] = value
        setting.tell(name, value)

    def is_over() -> None:
        for follows, value in derived(found).items():
            if found.get(follows) != value:
                note(follows, value)

    own = replace(setting, tell=note)
    for number, each in enumerate(rounds, start=1):
        if not setting.toy:
            of_later = sum(later.seconds for later in rounds[number:])
            measure_round(own, each, log, deadline - of_later, is_over)
            continue
        for figure in each.figures.values():
            figure.measure(own)
            is_over()
    return found


def measure_round(
    setting: Setting, of_round: Round, log: Path, deadline: float, is_over: Callable[[], None]
) -> None:
    """Let the processes of a round's figures get ready side by side, and then measure in turn.

    Turns begin when all are ready, or when the time until ``deadline`` only suffices for those that are. One
    that is not ready by then is ended, so that nothing runs beside them. ``is_over`` is called after each
    figure.
    """
    figures = of_round.figures
    # Processes that compile with a pool for every core each would wait for each other.
    threads = max(2, (os.cpu_count() or 2) // len(figures))
    environment = dict(os.environ) | {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
    started: list[Apart] = []

    def left() -> float:
        return deadline - time.time()

    with ExitStack() as ending:
        for name, figure in figures.items():
            if left() < (of_round.to_get_ready + figure.to_measure) / 2:
                too_little = f"too little of {SECONDS} s was left: --only {name}"
                setting.tell(f"{name}_left_out", too_little)
                continue
            runs = setting.runs / name
            runs.mkdir()
            ending.callback(shutil.rmtree, runs, ignore_errors=True)  # rows and graphs
            ending.callback(quit_mps, runs)
            told = Told(setting.runs / f"{name}.jsonl")
            command = command_of(replace(setting, runs=runs, waits=True), name, told)
            printed = log / f"{name}.txt"
            started.append(Apart(command, name, told, runs, printed, setting.tell, environment))
            ending.callback(started[-1].end, "when the call ended")
        getting_ready = dict.fromkeys(started)
        while getting_ready:
            for each in [*getting_ready]:
                each.hear()
                if each.is_over or each.is_ready:
                    del getting_ready[each]
                    took = "took_seconds" if each.is_over else "ready_after_seconds"
                    setting.tell(f"{each.name}_{took}", each.seconds)
                    is_over()
            ready = [each for each in started if not each.is_over and each not in getting_ready]
            if left() <= sum(figures[each.name].to_measure for each in ready):
                break
            time.sleep(0.05)
        for each in getting_ready:
            doing = "while it got ready, " if figures[each.name].to_measure else ""
            each.end(f"{doing}after {each.seconds:.0f} s")
            is_over()
        for each in started:
            if each.is_over:
                continue
            seconds = figures[each.name].to_measure
            if left() < seconds / 2:
                each.end(f"before its turn: too little of {SECONDS} s was left")
                continue
            each.begin()
            while not each.is_over:
                each.hear(min(seconds, each.seconds + left()))
                time.sleep(0.05)
            setting.tell(f"{each.name}_took_seconds", each.seconds)
            is_over()


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


def main() -> None:
    """Print each figure as it is known, then a table; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="Training on CUDA.")
    parser.add_argument("--toy", action="store_true", help="a CPU at toy size: does it run?")
    parser.add_argument("--steps", type=int, help="steps of every run, instead of its own number")
    parser.add_argument(
        "--only", action="extend", nargs="+", choices=FIGURES, metavar="NAME",
        help=", ".join(FIGURES),
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="folder for figures.jsonl, gpu.json, table.txt and log"
    )
    for hidden in ("--tell", "--runs"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--figure", choices=[*FIGURES, *ONES], help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=float, default=1e12, help=argparse.SUPPRESS)
    parser.add_argument("--waits", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.toy and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --toy rehearses on a CPU")
    if chosen.figure:  # one of several processes
        measure = ONES.get(chosen.figure) or FIGURES[chosen.figure].measure
        told = tell_into(chosen.tell)
        measure(Setting(chosen.toy, chosen.runs, told, chosen.steps, chosen.peak, chosen.waits))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing runs on
    kept = nullcontext(chosen.out) if chosen.out else tempfile.TemporaryDirectory()
    only = chosen.only or FIGURES
    rounds = [of_only for each in ROUNDS if (of_only := each.only(only)).figures]
    with kept as out, tempfile.TemporaryDirectory(prefix="gpu-") as runs:
        setting = Setting(chosen.toy, Path(runs), tell_all(Path(out)), chosen.steps)
        found = report(setting, Path(out), rounds, chosen.began + SECONDS)
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


def report(setting: Setting, out: Path, rounds: Sequence[Round], deadline: float) -> Figures:
    """Measure; then print and write the table and one JSON object. What was found."""
    device, precision = setting.work("bert_base").device, setting.work("bert_base").precision
    peak = peak_flops(torch.device(device), precision, seconds=0.2 if setting.toy else 1.0)
    of_machine = {
        "device": "cpu" if setting.toy else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peak_flops": peak,
    }
    for name, value in of_machine.items():
        setting.tell(name, value)
    setting = replace(setting, peak=peak)
    found = of_machine | measure_all(setting, rounds, out / "log", deadline)
    text = json.dumps({name: plain(value) for name, value in found.items()})
    (out / "table.txt").write_text(table(found) + "\n", encoding="utf-8")
    (out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    print(table(found), text, sep="\n")
    return found


if __name__ == "__main__":
    main()
