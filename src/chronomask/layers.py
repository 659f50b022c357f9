"""Plain values of configs in layers: read from YAML files and overrides, each laid over those before.

One grammar changes a config wherever changes are written: a dotted path, ``masking.ratio.base``, names a
value within groups. ``--set masking.ratio.base=0.3`` on the command line, ``masking.ratio.base: 0.3`` in
a file and in a study's arm, and the groups written out, all mean the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronomask.errors import UsageError, shown
from chronomask.yaml_text import control_character, from_yaml, read_text

__all__ = ["Layer", "merge", "nested", "parse_override", "read_yaml"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Values that came from one place, laid over those of the layers before."""

    origin: str
    """what a refusal blames for them: a file's path, ``--set steps=5``, ``--ratio 0.3``"""
    values: Mapping[str, Any]

    @classmethod
    def of_file(cls, path: str | Path) -> Layer:
        """The values of a YAML file; raises UsageError."""
        return cls(str(path), read_yaml(path))

    @classmethod
    def of_override(cls, text: str, flag: str = "--set") -> Layer:
        """The value of ``a.b.c=value``, given with a flag; raises UsageError."""
        path, value = parse_override(text)
        return cls(f"{flag} {text if text.isprintable() else shown(text)}", {path: value})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, dotted keys taken apart; raises UsageError naming file and line.

    Comments alone are a config of defaults. A file without a character is none: a command that failed leaves
    such a one behind.
    """
    path = Path(path)
    where = f"config file {path}"
    text = read_text(path)
    if not text.strip():
        raise UsageError(
            f"{where} is empty: write keys and values into it, such as steps: 100, or a recipe's, as "
            "chronomask recipes NAME prints them"
        )
    values = from_yaml(text, where)
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else shown(values)
        raise UsageError(f"{where} must hold keys and values, such as steps: 100, not {kind}")
    return nested(values)


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over them, group by group.

    A group whose ``kind`` changes is replaced: its other keys belonged to the previous kind. An empty
    group, ``{}``, empties what is there.
    """
    result = copy.deepcopy(dict(values))
    for key, change in changes.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(change, Mapping) and change:
            same = "kind" not in change or change["kind"] == before.get("kind", change["kind"])
            result[key] = merge(before if same else {}, change)
        else:
            result[key] = copy.deepcopy(change)
    return result


def parse_override(text: str) -> tuple[str, Any]:
    """The dotted path and the value of ``a.b.c=value``; the value is read as YAML.

    >>> parse_override("masking.ratio.base=0.3")
    ('masking.ratio.base', 0.3)

    Raises UsageError for a text of another form.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")) or control_character(path):
        raise UsageError(f"override {shown(text)} is not of the form key.subkey=value")
    return path, from_yaml(value, f"override {shown(text)}")


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the dots of their keys taken apart: ``a.b: 1`` means ``a: {b: 1}``.

    Keys of inner groups stay as they are. Groups named by several keys are merged, later keys over
    earlier ones.
    """
    result: dict[str, Any] = {}
    for path, value in values.items():
        first, *rest = str(path).split(".")
        for key in reversed(rest):
            value = {key: value}
        result = merge(result, {first: value})
    return result
