"""What it costs to begin: the import, the help, and a request that is refused.

    python -m benchmarks.startup [--json] [--toy]

Everything is measured in fresh processes and in CPU time, user and system, so that a busy machine changes
little; a figure is the median of several. Python keeps its byte code between them, as it does for an
installed package. ``--toy`` asks everything once, of one process: it looks at the answers, and its times
mean nothing.

- ``import_ms``: ``import chronomask``, without what the interpreter itself needs;
- ``torch_in_sys_modules``: whether that import brought torch;
- ``help_ms``: ``chronomask --help``, the interpreter's start included; ``command_help_ms`` of the slowest
  command's own help;
- ``refusal_cpu_s``: the dearest refusal, the interpreter's start included; ``refusals``: each of them, a
  wrong request of every kind to every command; ``late``: those that imported torch;
- ``src_files``, ``src_lines``: of the package, in Python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import as_json

SRC = Path(__file__).parents[1] / "src"
TEXT = "Some text to prepare.\n"
COMMANDS = (
    "prepare", "pretrain", "adapt", "replay", "evaluate", "study run", "study plan", "study status",
    "study report", "report", "quickstart", "inspect", "data info", "data verify", "data show", "data score",
    "data ngrams", "data export", "data import", "recipes", "compare", "push",
)  # fmt: skip

REFUSALS: dict[str, dict[str, str]] = {
    "prepare": {
        "no text": "--out {new}",
        "missing file": "{none}.txt --out {new}",
        "unknown ending": "{text}.odd --out {new}",
        "unknown recipe": "{text} --out {new} --config englisch",
        "unknown key": "{text} --out {new} --set row_lenght=3",
        "wrong value": "{text} --out {new} --row-length many",
        "unknown kind": "{text} --out {new} --tokenizer wordpice",
        "unknown tagger": "{text} --out {new} --tagger englsh",
        "wrong flag": "{text} --out {new} --row-lenght 3",
    },
    "pretrain": {
        "no data": "--out {new}",
        "no folder": "--data {none}",
        "missing data": "--data {none} --out {new}",
        "unknown recipe": "bert-smal --data {none} --out {new}",
        "missing file": "{none}.yaml --out {new}",
        "broken file": "{broken} --data {none} --out {new}",
        "unknown key": "bert-tiny --out {new} --set stepz=3",
        "wrong value": "bert-tiny --out {new} --steps many",
        "unknown kind": "bert-tiny --out {new} --ratio cosine_dcay",
        "unknown name": "bert-tiny --out {new} --model brt",
        "unknown field": "bert-tiny --out {new} --set model.overrides.hiden_size=3",
        "missing model": "bert-tiny --out {new} --model ./{none}",
        "wrong flag": "bert-tiny --out {new} --step 3",
    },
    "adapt": {
        "missing text": "{model} {none}.txt --out {new}",
        "missing model": "{none}/model {text} --out {new}",
        "unknown key": "{model} {text} --out {new} --set stepz=3",
        "unknown tagger": "{model} {text} --out {new} --tagger englsh",
        "unknown task": "{model} {text} --out {new} --tasks cloa --task-data {folder}",
        "wrong value": "{model} {text} --out {new} --epochs 0",
        "wrong flag": "{model} {text} --out {new} --epoch 3",
    },
    "replay": {"missing dump": "{none}"},
    "evaluate": {
        "missing model": "{none}/model --tasks cola --task-data {folder}",
        "missing data": "{model} --tasks cola --task-data {none}",
        "unknown task": "{model} --tasks cloa --task-data {folder}",
        "unknown key": "{model} --tasks cola --task-data {folder} --set epcohs=1",
        "wrong value": "{model} --tasks cola --task-data {folder} --set epochs=many",
        "the old flag": "{model} --tasks cola --data {folder}",
        "wrong flag": "{model} --tasks cola --task-dat {folder}",
    },
    "study run": {
        "no study": "--out {new}",
        "unknown recipe": "tyni --out {new}",
        "missing file": "{none}.yaml --out {new}",
        "unknown key": "tiny --out {new} --set sedes=3",
        "unknown key of a run": "tiny --out {new} --set base.stepz=3",
        "wrong value": "tiny --out {new} --steps many",
        "unknown key of a task": "tiny --out {new} --set tasks.sst2.settings.epcohs=1",
        "missing data": "tiny --out {new} --data {none}",
        "missing task data": "tiny --out {new} --task-data {none}",
        "two flags": "tiny --out {new} --only 1/2 --unit 1",
        "wrong flag": "tiny --out {new} --worker 3",
    },
    "study plan": {
        "no study": "--out {new}",
        "unknown recipe": "tyni --out {new}",
    },
    "study status": {"no study": "{none}"},
    "study report": {"no study": "{none}"},
    "report": {
        "missing run": "{none} --out {new}",
        "no run": "{folder} --out {new}",
        "twice": "{folder} {folder} --out {new}",
    },
    "compare": {
        "missing results": "{none}",
        "no results": "{folder}",
        "wrong flag": "{folder} --cvs",
    },
    "push": {
        "missing model": "{none} owner/name --dry-run",
        "no model": "{folder} owner/name --dry-run",
    },
    "quickstart": {"wrong value": "--steps 3", "wrong flag": "--step 30"},
    "inspect": {
        "nothing": "",
        "missing file": "--file {none}.txt",
        "missing data": "--data {none}",
        "missing tokenizer": "text --tokenizer {none}",
        "missing run": "text --run {none}",
        "unknown recipe": "text --config bert-tni",
        "unknown key": "text --set ratoi.kind=linear",
        "unknown kind": "text --ratio cosine_dcay",
        "wrong value": "text --progress 2",
    },
    "data info": {"missing data": "{none}", "no data": "{folder}"},
    "data verify": {"missing data": "{none}", "no data": "{folder}"},
    "data show": {
        "missing data": "{none}",
        "no data": "{folder}",
        "wrong flag": "{none} --splits train",
    },
    "data score": {"missing data": "{none} pmi", "no data": "{folder} pmi"},
    "data ngrams": {"missing data": "{none}", "no data": "{folder}"},
    "data export": {"missing data": "{none} --out {new}", "no data": "{folder} --out {new}"},
    "data import": {"missing file": "{none} --out {new}", "no file": "{folder} --out {new}"},
    "recipes": {"unknown name": "bert-tni"},
}
"""Command → kind of refusal → what is wrongly asked; names in braces are paths made for it."""

_IMPORT = """
import sys, time
started = time.process_time()
import chronomask
print(time.process_time() - started, "torch" in sys.modules)
"""
_CALLS = """
import contextlib, io, json, sys
from chronomask.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:], code, out, err = arguments, 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    answers.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    """What a command said; ``seconds`` of CPU time, and whether ``torch`` was imported by then."""

    seconds: float
    code: int
    out: str
    err: str
    torch: bool


def cpu_seconds(arguments: list[str]) -> tuple[float, int, str, str]:
    """CPU time, exit code, standard output and standard error of a fresh Python process."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = str(SRC)
    before = os.times()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    return spent, done.returncode, done.stdout, done.stderr


def made_paths(folder: Path) -> dict[str, str]:
    """Paths that requests name: what is there, and what is not."""
    (folder / "folder").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model" / "model.safetensors").write_bytes(b"")
    (folder / "text.txt").write_text(TEXT)
    (folder / "text.txt.odd").write_text(TEXT)
    (folder / "broken.yaml").write_text("steps: 1\nsteps: 2\n")
    return {
        "folder": str(folder / "folder"),
        "model": str(folder / "model"),
        "text": str(folder / "text.txt"),
        "broken": str(folder / "broken.yaml"),
        "none": str(folder / "none"),
        "new": str(folder / "new"),
    }


def ask(requests: list[list[str]], *, fresh: bool) -> list[Answer]:
    """What commands say, each in a process of its own or, for a look at the answers alone, all in one."""
    answers = []
    for group in [[request] for request in requests] if fresh else [requests]:
        spent, code, out, err = cpu_seconds(["-c", _CALLS, json.dumps(group)])
        if code:
            raise RuntimeError(f"{group} ended with {code}: {err}")
        answers += [Answer(spent / len(group), *answer) for answer in json.loads(out)]
    return answers


def refusals(times: int) -> tuple[dict[str, float], list[str]]:
    """CPU seconds of every refusal, and those that imported torch; RuntimeError if one is none."""
    requests = {
        f"{c}: {kind}": (c, words) for c, kinds in REFUSALS.items() for kind, words in kinds.items()
    }
    with tempfile.TemporaryDirectory() as made:
        paths = made_paths(Path(made))
        lines = [
            [*command.split(), *(word.format(**paths) for word in words.split())]
            for command, words in requests.values()
        ]
        rounds = [ask(lines, fresh=times > 1) for _ in range(times)]
        if Path(paths["new"]).exists():
            raise RuntimeError("a refusal left its folder behind")
    for name, answer in zip(requests, rounds[0], strict=True):
        if answer.code == 0 or not answer.err.startswith("chronomask: "):
            raise RuntimeError(f"{name} was not refused: {answer}")
    seconds = {
        name: statistics.median(answer.seconds for answer in answers)
        for name, *answers in zip(requests, *rounds, strict=True)
    }
    return seconds, [name for name, a in zip(requests, rounds[0], strict=True) if a.torch]


def benchmark_startup(times: int = 5) -> dict[str, Any]:
    """All figures; ``times`` processes for each."""
    imports = [cpu_seconds(["-c", _IMPORT])[2].split() for _ in range(times)]
    pages = [[*command.split(), "--help"] for command in ("", *COMMANDS)]
    rounds = [ask(pages, fresh=times > 1) for _ in range(times)]
    helps = [
        statistics.median(answer.seconds for answer in page) for page in zip(*rounds, strict=True)
    ]
    refused, late = refusals(times)
    files = list((SRC / "chronomask").rglob("*.py"))
    return {
        "import_ms": round(1000 * statistics.median(float(spent) for spent, _ in imports), 1),
        "torch_in_sys_modules": any(torch == "True" for _, torch in imports),
        "help_ms": round(1000 * helps[0]),
        "command_help_ms": round(1000 * max(helps[1:])),
        "refusal_cpu_s": round(max(refused.values()), 2),
        "refusals": {name: round(spent, 2) for name, spent in refused.items()},
        "late": late,
        "src_files": len(files),
        "src_lines": sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What it costs to begin.")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--toy", action="store_true", help="look at the answers alone")
    options = parser.parse_args()
    figures = benchmark_startup(1 if options.toy else 5)
    if options.json:
        print(as_json(figures))
        return
    for name, spent in sorted(figures.pop("refusals").items(), key=lambda item: -item[1]):
        print(f"{spent:6.2f} s  {name}")
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
