"""Compiled code that is kept on disk is never older than the code that was compiled into it.

numba keeps what it compiled by the contents of the function's own file. A function of another file that it
calls is compiled into it, so after a change there alone the old code would run on. So a file says, by a hash,
which contents of others are compiled into it: after a change, it is another file.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import chronomask

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
