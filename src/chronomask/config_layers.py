"""Plain values of configs in layers: read from YAML files and overrides, each laid over those before.

One grammar changes a config wherever changes are written: a dotted path, ``masking.ratio.base``, names a
value within groups. ``--set masking.ratio.base=0.3`` on the command line, ``masking.ratio.base: 0.3`` in
a file and in a study's arm, and the groups written out, all mean the same. A later layer may put values
into a group that stands there in a shorter form, as a kind's name or a number: see :class:`Shorthand`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, GetJsonSchemaHandler
from pydantic_core import CoreSchema, to_jsonable_python

from chronomask.config_errors import class_of, config_classes, kinds_of
from chronomask.errors import UsageError, shown
from chronomask.yaml_text import control_character, from_yaml, read_text

__all__ = [
    "Layer",
    "Shorthand",
    "merge",
    "nested",
    "overlay",
    "parse_override",
    "read_yaml",
    "with_kinds",
]

_TEXTS_KEPT = 1024
"""YAML files whose values are kept: a run's config is some 20 kB of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shorthand(BeforeValidator):
    """For a field whose group may be written shorter, as ``ratio: 0.30:0.15``; validates it as well."""

    group: Callable[[Any], Any]
    """the group that a value stands for; the value itself where it stands for none"""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        # Short forms are numbers, or texts such as 0.30:0.15 and spacy:de.
        short = [{"type": "number"}, {"type": "string", "pattern": r"[\d:]"}]
        return {"anyOf": [handler(core), *short]}


@dataclass(frozen=True, slots=True)
class Layer:
    """Values that came from one place, laid over those of the layers before."""

    origin: str
    """what a refusal blames for them: a file's path, ``--set steps=5``, ``--ratio 0.3``"""
    values: Mapping[str, Any]
    file: Path | None = None
    """the YAML file that they came from, if they came from one"""

    @classmethod
    def of_file(cls, path: str | Path) -> Layer:
        """The values of a YAML file; raises UsageError."""
        return cls(str(path), read_yaml(path), Path(path))

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
    values = _values_of(text, where)
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else shown(values)
        raise UsageError(f"{where} must hold keys and values, such as steps: 100, not {kind}")
    return nested(values)


@lru_cache(maxsize=_TEXTS_KEPT)
def _values_of(text: str, where: str) -> Any:
    """What a text holds, which nobody may change: kept, for a run's config is asked for in several places."""
    return from_yaml(text, where)


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
        if first in result:
            result = merge(result, {first: value})
        else:
            result[first] = copy.deepcopy(value)
    return result


def overlay(cls: type[BaseModel], layers: Sequence[Layer]) -> dict[str, Any]:
    """The values of all layers; before each but the first, defaults are written out for it to change.

    Layers after the first are collected beforehand, so that ``model.path`` may come before the
    ``model.kind`` it belongs to. Values need not be valid: what is wrong with them is for validation to say.
    """
    first, *others = [with_kinds(cls, layer.values) for layer in layers] or [{}]
    changes: dict[str, Any] = {}
    base = _with_defaults(cls, first)
    kinds = reduce(merge, others, base)
    for values in others:
        changes = _with_groups(cls, changes, values, kinds)
        base = _with_kinds_of(values, _with_groups(cls, base, values, kinds))
        changes = merge(changes, values)
    return merge(_with_defaults(cls, base), changes) if changes else first


def with_kinds(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the dots of their keys taken apart, those of groups too, in which a kind's name alone,
    ``content: ptw``, is the group that it stands for.
    """
    result = nested(values)
    for name, field in cls.model_fields.items():
        if name in result and get_origin(field.annotation) is not dict:
            result[name] = _with_kind(field.annotation, result[name])
    return result


def _with_kind(annotation: Any, value: Any) -> Any:
    """A value of a type, or the items of a list of it, likewise."""
    choices = _choices_of(annotation)
    if isinstance(value, list | tuple):
        items = [get_args(choice)[0] for choice in choices if get_origin(choice) in (list, tuple)]
        return [_with_kind(items[0], item) for item in value] if items else value
    single = (choice for choice in choices if get_origin(choice) not in (list, tuple))
    classes = [each for choice in single for each in config_classes(choice)]
    if isinstance(value, Mapping):
        group = class_of(classes, value)
        return value if group is None else with_kinds(group, value)
    if any(isinstance(how, BeforeValidator) for how in getattr(annotation, "__metadata__", ())):
        return value  # as sources, whose text may name a folder "files"
    return {"kind": value} if isinstance(value, str) and value in kinds_of(classes) else value


def _choices_of(annotation: Any) -> list[Any]:
    """The types of which a value of an annotation has one."""
    if get_origin(annotation) is Annotated:
        return _choices_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [choice for part in get_args(annotation) for choice in _choices_of(part)]
    return [annotation]


def _with_groups(
    cls: type[BaseModel],
    values: Mapping[str, Any],
    changes: Mapping[str, Any],
    kinds: Mapping[str, Any],
) -> dict[str, Any]:
    """``values`` in which a shorter form is the group that it stands for, where ``changes`` reach into it.

    ``kinds``: the values of all layers, for groups whose ``kind`` another layer gives.
    """
    result = dict(values)
    for name, field in cls.model_fields.items():
        before, change = values.get(name), changes.get(name)
        if not isinstance(change, Mapping) or name not in values:
            continue
        for how in field.metadata:
            before = how.group(before) if isinstance(how, Shorthand) else before
        if isinstance(before, Mapping):
            known = kinds[name] if isinstance(kinds.get(name), Mapping) else {}
            group = class_of(list(config_classes(field.annotation)), {**known, **before})
            result[name] = before if group is None else _with_groups(group, before, change, known)
    return result


def _with_kinds_of(changes: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` whose groups hold nothing but the new ``kind`` where ``changes`` name another one, and
    nothing where they empty it.

    So a kind that a later layer brings back has its defaults, and not what the first layer said of it; and
    a group that is emptied stays so if a later layer puts something into it.
    """
    result = dict(values)
    for key, change in changes.items():
        before = result.get(key)
        if not isinstance(before, Mapping) or not isinstance(change, Mapping):
            continue
        if not change:
            result[key] = {}
            continue
        kind = change.get("kind", before.get("kind"))
        same = kind == before.get("kind", kind)
        result[key] = _with_kinds_of(change, before) if same else {"kind": kind}
    return result


def _with_defaults(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the defaults of ``cls`` and its groups written out where they have none."""
    result = dict(values)
    for name, field in cls.model_fields.items():
        if name not in values:
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                result[name] = to_jsonable_python(default)
        elif isinstance(values[name], Mapping) and get_origin(field.annotation) is not dict:
            group = class_of(list(config_classes(field.annotation)), values[name])
            if group is not None:
                result[name] = _with_defaults(group, values[name])
    return result
