"""Runs scripts in processes of their own, forked from one that has imported what all of them need.

    python -m tests.support.forks '[[{"script": …, "arguments": […], "env": {…}}, …], …]'

The scripts of a group run at the same time, groups one after the other, each script in ``cwd`` as
``__main__`` (``module``: a module in place of a script). Prints a list of what each of them did: ``code``,
``out`` and ``err``.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.support.processes import HANG, python_path


def run_scripts(*groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the scripts of all groups did, in order; AssertionError where one failed."""
    command = [sys.executable, "-m", "tests.support.forks", json.dumps(groups)]
    environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    for answer in answers:
        assert answer["code"] == 0, answer["err"][-3000:]
    return answers


def _fork(job: dict[str, Any], logs: Path) -> int:
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ.update(job.get("env", {}))
        os.chdir(job["cwd"])
        if "module" in job:
            sys.argv[1:] = job.get("arguments", [])
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [job["script"], *job.get("arguments", [])]
            sys.path.insert(0, os.path.dirname(job["script"]))  # noqa: PTH120
            runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import torch  # noqa: F401
    from transformers import AutoModelForMaskedLM, Trainer  # noqa: F401

    import chronomask.integrations.transformers
    import chronomask.masking.masker  # noqa: F401

    answers = []
    for group in json.loads(sys.argv[1]):
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
