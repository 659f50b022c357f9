"""Runs scripts in processes of their own, forked from one that has imported what all of them need.

    python -m tests.support.forks '["torch", …]' '[[{"script": …, "arguments": […], "env": {…}}, …], …]'

The scripts of a group run at the same time, groups one after the other, each script in ``cwd`` as
``__main__`` (``module``: a module in place of a script). Prints a list of what each of them did: ``code``
(of exit, −9 if killed), ``out`` and ``err``.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.processes import HANG, python_path

TRAINING = ("torch", "transformers.trainer", "chronomask.integrations.transformers")
PREPARING = (
    "transformers.models.auto.tokenization_auto", "pyarrow.parquet", "zstandard", "chronomask.cli",
    "chronomask.prepare.pipeline", "chronomask.prepare.words.memo",
)  # fmt: skip
"""What scripts of a kind import."""


def run_scripts(imports: Sequence[str], *groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the scripts of all groups did, in order."""
    command = [sys.executable, "-m", "tests.support.forks", json.dumps(imports), json.dumps(groups)]
    environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def _fork(job: dict[str, Any], logs: Path) -> int:
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ.update(job.get("env", {}))
        os.chdir(job.get("cwd", "."))
        if "module" in job:
            sys.argv[1:] = job.get("arguments", [])
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [job["script"], *job.get("arguments", [])]
            sys.path.insert(0, os.path.dirname(job["script"]))  # noqa: PTH120
            runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    os.fsync = os.fstat  # as in tests/conftest.py  # pyright: ignore[reportAttributeAccessIssue]
    for module in json.loads(sys.argv[1]):
        import_module(module)
    answers = []
    for group in json.loads(sys.argv[2]):
        with tempfile.TemporaryDirectory() as name:
            folders = [Path(name) / str(number) for number in range(len(group))]
            for folder in folders:
                folder.mkdir()
            started = [_fork(job, folder) for job, folder in zip(group, folders, strict=True)]
            codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
            answers += [
                {"code": code, **{kind: (folder / kind).read_text() for kind in ("out", "err")}}
                for code, folder in zip(codes, folders, strict=True)
            ]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
