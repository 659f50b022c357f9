"""The GPU benchmark's calls: limits, figures that fail or hang, runs that begin together, wheels.

Small shell commands stand for figures, so nothing here is measured.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_apart, gpu_goals, gpu_small, sides
from benchmarks.gpu import Figure, Round
from benchmarks.gpu_apart import Apart, Told, tell_into
from benchmarks.gpu_work import SO_FAR, Setting, by_kind
from chronomask.train import loop
from tests.support.processes import HANG

ROOT = Path(__file__).parents[2]
TELLS = """echo '["speed", 2.5]' >> "$1"\n"""
"""A figure in shell: it tells its speed."""
WAITS = """touch "$2/$$.ready"; while [ ! -e "$2/begin" ]; do sleep 0.01; done\n"""
"""A figure in shell waits for its turn."""
Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measures figures of the real names, each by its lines of shell in a process of its own."""

    def measured(
        scripts: dict[str, str],
        told: Callable[[str, Any], None] = lambda *_: None,
        deadline: float = math.inf,
        to_measure: int = HANG,
    ) -> Any:
        def command_of(setting: Setting, figure: str, into: Told) -> list[str]:
            return ["sh", "-c", scripts[figure], figure, str(into.path), str(setting.runs)]

        monkeypatch.setattr(gpu, "command_of", command_of)
        runs = tmp_path / "runs"
        runs.mkdir()
        setting = Setting(False, runs, told)
        of_round = round_of(*scripts, to_measure=to_measure)
        found = gpu.measure_all(setting, [of_round], tmp_path / "log", deadline)
        assert not [each for each in runs.iterdir() if each.is_dir()]  # no rows are left
        cut_off = {name: str(found.get(f"{name}_cut_off", "after")) for name in scripts}
        begun = [name for name in scripts if cut_off[name].startswith("after")]
        took = [found.pop(f"{name}_took_seconds") for name in begun]
        waited = [name for name, script in scripts.items() if WAITS in script]
        ready = [name for name in waited if not cut_off[name].startswith("while")]
        took += [found.pop(f"{name}_ready_after_seconds") for name in ready]
        assert all(0 <= seconds < HANG for seconds in took)
        return found

    return measured


def round_of(*names: str, to_measure: int = HANG) -> Round:
    """A round of these figures, with so many seconds to measure each."""
    return Round(HANG, {name: gpu.FIGURES[name]._replace(to_measure=to_measure) for name in names})


def test_what_fails_is_named_and_the_rest_still_runs(tmp_path: Path, measure: Measure) -> None:
    """One fails after what it told, one is killed, one prints what looks like a figure, one is well."""
    found = measure(
        {
            "masking": TELLS + "echo out of memory >&2; exit 3",
            "tests": "kill -SEGV $$",
            "threads": "kill -KILL $$",
            "small": """echo '["not told", 1]'; echo '[half a line'; printf '["cut' >> "$1" """,
            "squad": """echo '["squad_examples_per_second", 7]' >> "$1" """,
        }
    )
    assert found == {
        "speed": 2.5,
        "masking_failed": "exit status 3",
        "masking_failed_end": ["out of memory"],
        "tests_failed": "SIGSEGV",
        "tests_failed_end": [],
        "threads_failed": "SIGKILL, perhaps for want of memory",
        "threads_failed_end": [],
        "squad_examples_per_second": 7,
    }
    assert "failed: masking, tests, threads" in gpu_goals.table(found)
    log = tmp_path / "log"  # all that was printed is kept
    assert (log / "masking.txt").read_text() == "out of memory\n"
    assert "[half a line" in (log / "small.txt").read_text()


def test_figures_get_ready_together_and_measure_in_turn(tmp_path: Path, measure: Measure) -> None:
    """Each gets ready only when the other has started, and says in one file when it measures.

    One fails while it waits, which the others do not notice. One never waits for a turn.
    """
    line = tmp_path / "line"
    meets = f"""touch {tmp_path}/$0.started
    while [ ! -e {tmp_path}/small.started ] || [ ! -e {tmp_path}/squad.started ]; do sleep 0.01; done\n"""
    measures = f"""echo "$0 begins" >> {line}; sleep 0.2; echo "$0 ends" >> {line}\n"""
    found = measure(
        {
            "squad": f"sleep 0.1\n{meets}{WAITS}{measures}",
            "sst2": """touch "$2/$$.ready"; exit 4""",
            "small": f"{meets}{WAITS}{measures}{TELLS}",
            "tests": TELLS.replace("speed", "cuda_tests"),
        }
    )
    assert line.read_text().splitlines() == [
        "squad begins", "squad ends", "small begins", "small ends",
    ]  # fmt: skip
    assert found.pop("sst2_ready_after_seconds", 0) < HANG  # if it was seen before it was over
    assert found == {
        "cuda_tests": 2.5, "speed": 2.5, "sst2_failed": "exit status 4", "sst2_failed_end": [],
    }  # fmt: skip


@pytest.mark.slow
def test_real_processes_wait_for_their_turn(tmp_path: Path) -> None:
    """At toy size, with the commands of a real call."""
    found: dict[str, Any] = {}
    setting = Setting(True, tmp_path, found.__setitem__, steps=8)
    of_round = round_of("bert_base", "masking")
    gpu.measure_round(setting, of_round, tmp_path / "log", math.inf, lambda: None)
    assert "masking_failed_end" not in found, found
    for name in ("masking", "bert_base"):
        assert found[f"{name}_ready_after_seconds"] > 0  # it has waited
    assert found["bert_base_tokens_per_second"] > 0
    assert found["masking_seconds"] > 0


def test_a_figure_that_is_cut_off_keeps_what_it_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over as soon as it has told something: it would go on for an hour."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(gpu_apart, "time", clock)
    noted: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        noted[name] = value
        now[0] = 100.0

    told = Told(tmp_path / "told")
    script = """echo '["pid", '$$']' >> "$1"; exec sleep 3600"""
    command = ["sh", "-c", script, "figure", str(told.path)]
    figure = Apart(command, "bert_base", told, tmp_path, tmp_path / "log", note)
    while not figure.is_over:
        figure.hear(60)
    assert noted == {"pid": noted["pid"], "bert_base_cut_off": "after 100 s"}
    with pytest.raises(ProcessLookupError):
        os.kill(noted["pid"], 0)


def test_nothing_runs_on_when_the_call_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for its turn, the other is getting ready."""
    noted: list[Any] = []

    def tell(name: str, value: Any) -> None:
        if name == "pid":
            noted.append(value)
            if len(noted) == 2:
                raise SystemExit(143)

    script = """echo '["pid", '$$']' >> "$1"; touch "$2/$$.ready"; exec sleep 3600"""
    monkeypatch.setattr(
        gpu, "command_of", lambda setting, figure, told: [
            "sh", "-c", script, figure, str(told.path), str(setting.runs),
        ],
    )  # fmt: skip
    setting = Setting(False, tmp_path, tell)
    with pytest.raises(SystemExit):
        gpu.measure_all(setting, [round_of("small", "squad")], tmp_path / "log")
    for pid in noted:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_figure_without_half_its_time_is_left_out_by_name(tmp_path: Path) -> None:
    of_round = round_of("small")
    setting = Setting(False, tmp_path, lambda *_: None)
    deadline = time.time() + of_round.seconds / 2
    found = gpu.measure_all(setting, [of_round], tmp_path / "log", deadline)
    assert found == {"small_left_out": "too little of 540 s was left: --only small"}
    assert "left out: small" in gpu_goals.table(found)


def test_a_figure_whose_turn_comes_too_late_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measure: Measure
) -> None:
    """What measured before it took all the time there was."""
    now = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(time=lambda: now[0], sleep=time.sleep))

    def told(name: str, _: Any) -> None:
        now[0] = 4.0 * HANG - 1 if name == "speed" else now[0]

    scripts = {"squad": WAITS + TELLS, "small": WAITS + TELLS}
    found = measure(scripts, told, deadline=4.0 * HANG)
    assert found["speed"] == 2.5
    assert found["small_cut_off"] == "before its turn: too little of 540 s was left"


def test_what_follows_is_told_after_each_figure_and_says_whether_it_is_final(
    measure: Measure,
) -> None:
    order: list[str] = []
    found = measure(
        {
            "bert_base": f"""{WAITS}echo '["bert_base_tokens_per_second", 600]' >> "$1" """,
            "trainer_eager": f"""echo '["trainer_eager_tokens_per_second{SO_FAR}", 300]' >> "$1" """,
            "trainer_compiled": """echo '["trainer_compiled_tokens_per_second", 400]' >> "$1" """,
            "bert_base_bf16": f"""{WAITS}echo '["bert_base_bf16_tokens_per_second", 800]' >> "$1" """,
        },
        lambda name, _: None if name.endswith("_seconds") else order.append(name),
    )
    best = "bert_base_best_tokens_per_second"
    assert order[2:5] == ["bert_base_tokens_per_second", "bert_base_fastest", best]
    assert found["bert_base_fastest"] == "bert_base_bf16"
    assert found[best] == 800
    assert found["train_vs_trainer_compiled"] == 2
    assert "train_vs_trainer_eager" not in found
    assert found[f"train_vs_trainer_eager{SO_FAR}"] == pytest.approx(800 / 300)
    assert "so far" in gpu_goals.table(found)


def test_a_table_compares_with_floors_and_limits() -> None:
    found = {
        "bert_large_best_tokens_per_second": 210e3,
        "modernbert_base_best_tokens_per_second": 430e3,
        "varlen_error": float("nan"),
        "bert_base_best_recompiles": 0,
        "cuda_tests": "failed",
    }
    lines = {line.split()[0]: line for line in gpu_goals.table(found).splitlines()}
    assert "floor" not in lines["bert_large_best_tokens_per_second"]
    assert "below its floor" in lines["modernbert_base_best_tokens_per_second"]
    assert "above its limit" in lines["varlen_error"]
    assert "limit" not in lines["bert_base_best_recompiles"]
    assert "not measured" in lines["squad_vs_transformers"]
    assert lines["failed:"] == "failed: cuda_tests"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<128>", "attention"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "matrix_products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix_products"),
        ("triton_per_fused__to_copy_add_native_layer_norm_5", "layer_norm"),
        ("triton_poi_fused__to_copy_gelu_mul_3", "gelu"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("triton_red_fused__to_copy_sum_2", "sums"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_poi_fused_add_mul_7", "other"),
    ],
)
def test_kernels_are_counted_by_kind_of_work(kernel: str, kind: str) -> None:
    assert by_kind({kernel: 2.0, "Memset (Device)": 0.5}) == {kind: 2.0, "copies": 0.5} | (
        {"copies": 2.5} if kind == "copies" else {}
    )


class FakeRun:
    """One of many runs: it warms up while it is asked ``warm`` times, waits, trains, and ends."""

    def __init__(
        self, pid: int, warm: int, ends: list[float], meeting: Path, status: int = 0
    ) -> None:
        self.pid = pid
        self._warm, self._ends, self._meeting, self._status = warm, ends, meeting, status
        self._tell = tell_into(meeting / f"{pid}.jsonl")
        self._is_over = False

    def poll(self) -> int | None:
        """As the process of a run answers."""
        self._warm -= 1
        begun = (self._meeting / "begin").exists()
        if self._warm > 0:
            assert not begun, "the runs began before this one was ready"
            return None
        if self._status:
            return self._status
        (self._meeting / f"{self.pid}.ready").touch()
        if begun and not self._is_over:
            self._is_over = True
            for end in self._ends:
                self._tell("end", end)
            return None
        return 0 if self._is_over else None


def test_runs_begin_when_all_that_live_are_ready(tmp_path: Path) -> None:
    """The third never gets ready, for it fails; the second takes the longest."""
    long = [float(each) for each in range(120)]
    runs = [
        FakeRun(1, 2, long, tmp_path),
        FakeRun(2, 6, [3.0, 5.0], tmp_path),
        FakeRun(3, 4, [], tmp_path, status=1),
    ]
    tolds = [Told(tmp_path / f"{run.pid}.jsonl") for run in runs]
    heard: list[int] = []
    turns: list[bool] = []
    ends_of = gpu_small.follow(
        runs, tolds, tmp_path, lambda: turns.append((tmp_path / "begin").exists()),
        lambda so_far: heard.append(sum(map(len, so_far))),
    )  # fmt: skip
    assert turns == [False]  # their turn is waited for once, before they begin
    assert ends_of == [long, [3.0, 5.0], []]
    assert heard == [120]  # before the second told anything


@pytest.mark.parametrize(
    ("ends_of", "speed"),
    [
        ([[0.0, 1.0, 2.0]], 10.0),
        ([[0.0, 1.0, 2.0, 3.0], [0.5, 1.0, 1.5, 2.0]], 30.0),  # of 1.5 s: 1.5 and 3 steps
        ([[0.0, 1.0], [1.0, 2.0]], None),  # one after the other: a sum of both speeds would be 20
        ([], None),
    ],
)
def test_the_speed_of_runs_is_that_of_the_time_they_share(
    ends_of: list[list[float]], speed: float | None
) -> None:
    assert gpu_small.speed_together(ends_of, 10) == speed


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What NVIDIA's daemon was asked, a line each, in this file: a script stands for it."""
    said, program = tmp_path / "said", tmp_path / "bin" / gpu_small.DAEMON
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
echo "${{1:-$(cat)}} $(basename "$CUDA_MPS_PIPE_DIRECTORY")" >> '{said}'
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return said


def test_no_step_of_a_run_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop waits for each, and has asked the device for the next one by then."""
    waits: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append(True))
    monkeypatch.setattr(sides.RunLog, "advance", lambda *_: None)
    with sides._step_ends(lambda: None, 4) as ends:
        for step in range(3):
            sides.RunLog.advance(object(), step)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert len(ends) == 3
    assert not waits


def test_the_daemon_ends_where_all_runs_fail(
    tmp_path: Path, daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_small, "command_of", lambda *_: ["false"])
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(RuntimeError, match="8 of 8 runs failed"):
        gpu.FIGURES["many_runs_mps"].measure(Setting(False, runs, lambda *_: None))
    assert daemon.read_text().splitlines() == ["-d mps", "quit mps"]


def test_the_daemon_ends_where_its_figure_is_killed(daemon: Path, measure: Measure) -> None:
    found = measure({"many_runs_mps": """mkdir "$2/mps"; kill -KILL $$"""})
    assert found["many_runs_mps_failed"].startswith("SIGKILL")
    assert daemon.read_text().splitlines() == ["quit mps"]


def test_a_figure_that_does_not_get_ready_holds_up_no_other(
    tmp_path: Path, measure: Measure
) -> None:
    """It is over before the first turn, as is a test without a turn, and keeps what it told."""
    alive = f"""kill -0 $(cat {tmp_path}/slow) 2> /dev/null || echo '["alone", 1]' >> "$1"\n"""
    slow = f"""echo '["slow_speed{SO_FAR}", 1]' >> "$1"; echo $$ > {tmp_path}/slow; exec sleep 3600\n"""
    after_slow = f"""until [ -s {tmp_path}/slow ]; do sleep 0.01; done\n"""
    late = f"""until [ -e {tmp_path}/small_is_ready ]; do sleep 0.01; done\n"""
    now = [0.0]

    def told(name: str, _: Any) -> None:
        if name == "small_ready_after_seconds":
            (tmp_path / "small_is_ready").touch()
        if name == "squad_ready_after_seconds":
            now[0] = 100.0 - 2 * HANG  # what is left suffices for two

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu, "time", SimpleNamespace(time=lambda: now[0], sleep=time.sleep))
        now[0] = 100.0 - 5 * HANG
        found = measure(
            {
                "bert_base": slow + WAITS,
                "tests": "exec sleep 3600",
                "small": after_slow + WAITS + alive + TELLS,
                "squad": late + WAITS + TELLS.replace("speed", "squad_speed"),
            },
            told,
            deadline=100.0,
        )
    cut_off = {name: found.pop(f"{name}_cut_off") for name in ("bert_base", "tests")}
    assert cut_off["bert_base"].startswith("while it got ready, after")
    assert found == {f"slow_speed{SO_FAR}": 1, "alone": 1, "speed": 2.5, "squad_speed": 2.5}


def test_a_round_leaves_later_ones_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not need is theirs as well."""
    deadlines: list[float] = []
    monkeypatch.setattr(
        gpu, "measure_round", lambda *arguments: deadlines.append(arguments[3])
    )  # fmt: skip
    rounds = [Round(50, {"small": Figure(print, 10, 1)}), Round(30, {"squad": Figure(print, 5, 1)})]
    gpu.measure_all(Setting(False, tmp_path, print), [*rounds, rounds[0]], tmp_path, 1000)
    assert deadlines == [1000 - 60 - 35, 1000 - 60, 1000]


def test_a_run_ends_with_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are told without the validation and the checkpoint of gigabytes that would follow."""
    for name in ("_validate", "_save"):
        monkeypatch.setattr(loop, name, lambda *_, **__: pytest.fail("it went on"))
    told: dict[str, Any] = {}
    gpu.FIGURES["small"].measure(Setting(True, tmp_path, told.__setitem__, steps=4))
    assert {"small_tokens_per_second", "small_mfu", "small_peak_memory_bytes"} <= set(told)


def test_the_rounds_fit_into_a_call_and_their_processes_onto_a_card() -> None:
    starts = 20  # seconds for wheels, imports and the rate of a product
    assert starts + sum(each.seconds for each in gpu.ROUNDS) == gpu.SECONDS == 9 * 60
    assert len(gpu.FIGURES) == sum(len(each.figures) for each in gpu.ROUNDS)
    for each in gpu.ROUNDS:
        assert sum(figure.gigabytes for figure in each.figures.values()) <= 125  # of 150
        without_turn = {name for name, figure in each.figures.items() if not figure.to_measure}
        assert without_turn == set(each.figures if each is gpu.ROUNDS[-1] else ())


def test_the_page_has_the_rounds_as_they_are() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (\d+) s \| (`.*) \| (\d+) GB \|$", page, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == [1, 2, 3, 4]
    for (_, to_get_ready, figures, gigabytes), each in zip(rows, gpu.ROUNDS, strict=True):
        assert int(to_get_ready) == each.to_get_ready
        assert int(gigabytes) == sum(figure.gigabytes for figure in each.figures.values())
        shown = re.findall(r"`(\w+)`(?: (\d+) s)?", figures)
        limits = [(name, int(seconds or 0)) for name, seconds in shown]
        assert limits == [(name, figure.to_measure) for name, figure in each.figures.items()]
    explained = set(re.findall(r"`(\w+)`", page))
    assert set(gpu.FIGURES) <= explained


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            ["--only", "squad", "masking", "--only", "tests", "sst2"],
            [["masking"], ["squad", "sst2"], ["tests"]],
        ),
        ([], [[*each.figures] for each in gpu.ROUNDS]),
    ],
)
def test_a_call_has_the_figures_that_were_asked_for(
    arguments: list[str], names: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nine minutes count from when the script began; a test that fails is an exit status."""
    chosen: list[Any] = []

    def report(setting: Setting, out: Path, rounds: Any, deadline: float) -> dict[str, Any]:
        chosen.extend([[[*each.figures] for each in rounds], deadline])
        return {"cuda_tests": "failed"}

    monkeypatch.setattr(gpu, "report", report)
    monkeypatch.setattr(gpu, "signal", SimpleNamespace(SIGTERM=15, signal=lambda *_: None))
    monkeypatch.setattr(sys, "argv", ["gpu.sh", "--toy", "--began", "1000", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    assert chosen == [names, 1540]


def test_every_file_with_tests_for_cuda_is_run() -> None:
    marked = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in file.read_text(encoding="utf-8") and file != Path(__file__)
    }
    assert marked == {*gpu.CUDA_TESTS, *gpu.GRAPH_TESTS}


def test_tests_that_fail_are_named_at_once_and_their_reasons_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script prints what pytest does, alone and with several processes."""
    printed = [
        "tests/a.py::test_x FAILED [ 10%]", "[gw0] [ 20%] ERROR tests/b.py::test_y ",
        "==== ERRORS ====", "FAILED tests/a.py::test_x - why", "==== 1 failed, 1 error ====",
    ]  # fmt: skip
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in printed) + "exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    told: dict[str, Any] = {}
    gpu.FIGURES["tests"].measure(Setting(False, tmp_path, told.__setitem__))
    assert told == {
        f"cuda_tests_failures{SO_FAR}": ["tests/a.py::test_x", "tests/b.py::test_y"],
        "cuda_tests_end": "1 failed, 1 error",
        "cuda_tests_failures": ["FAILED tests/a.py::test_x - why"],
        "cuda_tests": "failed",
    }


def test_tests_that_lack_a_package_are_left_out_and_say_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name == "zstandard" else name)
    told: dict[str, Any] = {}
    gpu.FIGURES["tests"].measure(Setting(True, tmp_path, told.__setitem__))
    assert told == {"cuda_tests_left_out": f"{sys.executable} lacks zstandard"}


def test_wheels_are_used_and_what_is_missing_is_named(tmp_path: Path) -> None:
    """With a Python that has pip and nothing else; a wheel brings what the first call missed."""
    bare = tmp_path / "python"
    bare.write_text(
        f"""#!/bin/sh
case "$2" in
  pip) exec '{sys.executable}' "$@" ;;
  benchmarks.gpu) exec '{sys.executable}' -S -c 'import torch; print(torch.__file__)' ;;
esac
exec '{sys.executable}' -S "$@"
"""
    )
    bare.chmod(0o755)
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [str(ROOT / "benchmarks" / "gpu.sh"), *arguments], capture_output=True, text=True,
            timeout=HANG, env=environment | {"PYTHON": str(bare)},
        )  # fmt: skip

    without = call()
    assert without.returncode == 2
    lacking = re.search(r"lacks (.*): put their wheels", without.stderr)
    assert lacking is not None, without.stderr
    names = lacking[1].split()
    assert {"torch", "pydantic", "pydantic_core", "typing_inspection"} <= set(names)
    empty = call("--wheels", str(wheels))
    assert empty.returncode == 2
    assert f"there is no wheel in {wheels}" in empty.stderr
    with zipfile.ZipFile(wheels / "all-1-py3-none-any.whl", "w") as wheel:
        for name in names:
            wheel.writestr(f"{name}.py", "")
        of_pip = {
            "METADATA": "Metadata-Version: 2.1\nName: all\nVersion: 1\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in of_pip.items():
            wheel.writestr(f"all-1.dist-info/{name}", text)
    done = call("--wheels", str(wheels))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/torch.py\n")
    assert not Path(done.stdout.strip()).exists()  # what was unpacked is gone
