"""Groups of classes on pages: each has a colour, and the legend names its classes beside it."""

from __future__ import annotations

from collections.abc import Iterable

from chronomask.types import NO_CLASS, UPOS_CLASSES
from chronomask.yardsticks import CONTENT, FUNCTION, group_of

__all__ = ["group_key", "legend_of"]

_KEYS = {CONTENT: "content", FUNCTION: "function"}
_LABELS = {
    "content": "content words",
    "function": "function words",
    "other": "punctuation and the rest",
}


def group_key(name: str) -> str:
    """What styles call the group of a class: ``content``, ``function``, or ``other``."""
    return _KEYS.get(group_of(name), "other")


def legend_of(names: Iterable[str]) -> list[dict[str, str]]:
    """The groups that these classes have, each with its classes; nothing where all are of one kind."""
    classes = sorted(name for name in names if name != UPOS_CLASSES[NO_CLASS])
    found = {key: [name for name in classes if group_key(name) == key] for key in _LABELS}
    if not found["content"] and not found["function"]:
        return []
    return [
        {"key": key, "label": _LABELS[key], "classes": ", ".join(members)}
        for key, members in found.items()
        if members
    ]
