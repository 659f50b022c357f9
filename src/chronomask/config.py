"""Base of every part's configuration: frozen values, read from YAML, changed by dotted overrides.

A part's config is a :class:`Config` subclass in the part's own file; alternatives form a union told
apart by ``kind``. Nothing in a file is ever imported or executed. Unknown keys and values are refused
with the place, the value and the nearest valid name, before any work starts.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from chronomask.errors import UsageError, nearest

__all__ = [
    "Config",
    "apply_overrides",
    "diff",
    "merge",
    "nested",
    "parse_override",
    "read_configs",
    "read_yaml",
]


class Config(BaseModel):
    """A frozen value with known keys only; equal configs compare equal."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply ``a.b.c=value`` overrides; raises :class:`UsageError`."""
        return cls.parse_with(read_yaml(path), overrides, where=str(path))

    @classmethod
    def parse_with(
        cls, values: Mapping[str, Any], overrides: Sequence[str], where: str = "the configuration"
    ) -> Self:
        """Validate plain values changed by overrides, which may name defaults not written out."""
        with contextlib.suppress(ValidationError):  # the overrides may be what is missing
            values = cls.model_validate(values).to_dict()
        return cls.parse(apply_overrides(values, overrides), where)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "the configuration") -> Self:
        """Validate plain values; ``where`` names their origin in errors. Raises UsageError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(_explain(cls, error, where)) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values with every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """YAML text that :meth:`load` reads back to an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def replace(self, overrides: Sequence[str]) -> Self:
        """A validated copy with dotted overrides applied."""
        return self.parse(apply_overrides(self.to_dict(), overrides), where="the overrides")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises :class:`UsageError` naming file and line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config file {path} cannot be read: {error}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"config file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"config file {path} must hold a mapping, not {type(values).__name__}")
    return values


def read_configs(paths: Sequence[str | Path]) -> dict[str, Any]:
    """The values of several YAML files, each changing those before it; raises :class:`UsageError`."""
    values: dict[str, Any] = {}
    for path in paths:
        values = merge(values, read_yaml(path))
    return values


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
    if not equals or not all(path.split(".")):
        raise UsageError(f"override {text!r} is not of the form key.subkey=value")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"override {text!r}: the value is not valid YAML: {error}") from None


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


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``a.b.c=value`` applied in order, each as :func:`merge` lays it over them."""
    changes: dict[str, Any] = {}
    for override in overrides:
        path, value = parse_override(override)
        _refuse_descent(values, path, override)
        changes = merge(changes, nested({path: value}))
    return merge(values, changes)


def _refuse_descent(values: Mapping[str, Any], path: str, override: str) -> None:
    """Raise UsageError where a path goes on below a value that is no group of keys."""
    node: Any = values
    keys = path.split(".")
    for depth, key in enumerate(keys[:-1], start=1):
        node = node.get(key)
        if node is None:
            return
        if not isinstance(node, Mapping):
            at = ".".join(keys[:depth])
            raise UsageError(f"override {override!r}: {at} is {node!r}, not a group of keys")


def diff(left: Config, right: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values (None where a key is absent)."""
    a, b = dict(_leaves(left.to_dict())), dict(_leaves(right.to_dict()))
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(cls: type[Config], error: ValidationError, where: str) -> str:
    """One line per problem: place, offending value, valid names with the nearest first."""
    lines = []
    for item in error.errors(include_url=False):
        location = ".".join(str(part) for part in item["loc"])
        kind, value = item["type"], item.get("input")
        if kind == "extra_forbidden":
            names = _keys_at(cls, item["loc"][:-1])
            lines.append(f"unknown key '{location}'; {nearest(str(item['loc'][-1]), names)}")
        elif kind == "union_tag_invalid":
            context = item.get("ctx", {})
            names = [name.strip(" '") for name in str(context.get("expected_tags", "")).split(",")]
            tag = str(context.get("tag", value))
            lines.append(f"{location}.kind is '{tag}'; {nearest(tag, names)}")
        elif kind == "union_tag_not_found":
            lines.append(f"{location} needs a 'kind', got {value!r}")
        elif kind == "literal_error":
            names = [
                n.strip(" '")
                for n in str(item.get("ctx", {}).get("expected", ""))
                .replace(" or ", ", ")
                .split(",")
            ]
            lines.append(f"{location} is {value!r}; {nearest(str(value), names)}")
        elif kind == "missing":
            lines.append(f"'{location}' is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{location or 'the whole'} is {value!r}: {message}")
    return f"{where}: " + "; ".join(lines)


def _keys_at(cls: type[Config], location: Sequence[str | int]) -> list[str]:
    """Valid keys of the config class found by following ``location`` from ``cls``."""
    current: type[Config] = cls
    for part in location:
        field = current.model_fields.get(str(part))
        if field is None:  # a tag of a union, which pydantic adds to the location
            continue
        classes = list(_config_classes(field.annotation))
        tags = {str(c.model_fields["kind"].default): c for c in classes if "kind" in c.model_fields}
        chosen = next((tags[str(p)] for p in location if str(p) in tags), None)
        if chosen is None and not classes:
            return []
        current = chosen or classes[0]
    return list(current.model_fields)


def _config_classes(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _config_classes(argument)


def json_schema(cls: type[Config]) -> dict[str, Any]:
    """JSON Schema of a config class, for editors that complete and check YAML."""
    return TypeAdapter(cls).json_schema()
