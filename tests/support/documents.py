"""Code in the documentation, as a reader would run it."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[str]:
    """The Python code of a page's blocks in order; of a diff, what is there once it is applied."""
    return [_applied(code) if kind == "diff" else code for kind, code in _BLOCK.findall(text)]


def _applied(diff: str) -> str:
    lines = [line for line in diff.splitlines() if not line.startswith("-")]
    return "".join(f"{line[1:]}\n" for line in lines)
