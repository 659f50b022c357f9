"""The pictures of docs/gallery.md, drawn by the code that the page shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
DRAWN = {"schedules": 0, "study": 3}
"""Name → number of its block of code; the others show what other pages show as well."""


def figures() -> dict[str, Figure]:
    """``gallery-NAME`` → figure."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    found = {}
    for name, number in DRAWN.items():
        figure = plt.figure(figsize=(7.2, 3.2), layout="constrained")
        code = blocks[number].replace("runs/tiny", str(DOCS / "results" / "tiny"))
        exec(compile(code, f"gallery.md, block {number + 1}", "exec", dont_inherit=True), names)
        found[f"gallery-{name}"] = figure
        plt.close(figure)
    return found
