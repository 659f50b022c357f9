"""Compiled code that is kept on disk is never older than the code that was compiled into it, and need not be.

numba keeps what it compiled by the contents of the function's own file. A function of another file that it
calls is compiled into it, so after a change there alone the old code would run on. So a file says, by a hash,
which contents of others are compiled into it: after a change, it is another file.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import CacheImpl

import chronomask
from chronomask import compiled, keyed

SOURCE = Path(chronomask.__file__).parent
COMPILED = {
    file for file in SOURCE.rglob("*.py") if "from numba import" in file.read_text(encoding="utf-8")
}


def compiled_into(file: Path) -> list[Path]:
    """The package's other files whose compiled functions this one imports, or which it imports whole."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for imported in node.names:
            found.add(path_of(f"{node.module}.{imported.name}"))
            if imported.name in compiled_functions(path_of(node.module)):
                found.add(path_of(node.module))
    return sorted((found & COMPILED) - {file})


def path_of(module: str) -> Path:
    return SOURCE.parent / f"{module.replace('.', '/')}.py"


def compiled_functions(file: Path) -> set[str]:
    """Names of a file's functions that numba compiles."""
    if file not in COMPILED:
        return set()
    functions = (
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    )
    return {f.name for f in functions if "jit" in "".join(map(ast.unparse, f.decorator_list))}


def test_a_file_names_the_contents_that_are_compiled_into_it() -> None:
    importing = {file: parts for file in COMPILED if (parts := compiled_into(file))}
    assert len(importing) >= 3
    for file, parts in sorted(importing.items()):
        digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:12]
        line = f"# compiled in: {digest}"
        assert line in file.read_text(encoding="utf-8"), f"{file}: write {line!r}"


def test_where_nothing_can_be_kept_a_warning_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert compiled._can_be_kept()
    assert not caplog.records
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # no folder may be written
    with caplog.at_level(logging.WARNING):
        assert not compiled._can_be_kept()
    (said,) = caplog.messages
    assert "Set NUMBA_CACHE_DIR to a folder that may be written" in said


def test_where_nothing_can_be_kept_compiled_code_runs_all_the_same() -> None:
    program = (
        "from numba.core.caching import CacheImpl; CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from chronomask import keyed\n"
        "from chronomask.masking.select import exact\n"
        "print(keyed.keys_by_stream(1, np.zeros(2, np.int64), np.arange(2)).sum())\n"
        "print(exact.count_maskable(np.array([[0, -1, 2]], np.int32)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    keys = keyed.keys_by_stream(1, np.zeros(2, np.int64), np.arange(2))
    assert ran.stdout.split() == [str(keys.sum()), "2"]
    assert ran.stderr.count("compiled code cannot be kept") == 1
