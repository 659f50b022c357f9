"""What is wrong with a config, as sentences: the value, its key as it stands in the file, the way out.

Here are also the config classes behind an annotation or a key path, which sentences about kinds and keys
need. Classes are looked at, never values made of them.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from chronomask.errors import nearest, shown

__all__ = [
    "KeyPath",
    "class_of",
    "config_classes",
    "describe_problem",
    "kinds_at",
    "kinds_of",
    "meanings_of",
    "root_causes",
    "unknown_key",
    "unknown_name",
]

ConfigClass = type[BaseModel]

_CONSEQUENCES = (
    "model_type", "model_attributes_type", "dict_type", "list_type", "tuple_type", "float_type",
    "int_type", "string_type", "none_required", "union_tag_not_found", "too_short",
)  # fmt: skip
"""Types of pydantic's problems that may only be the other side of another problem with the same value."""

KeyPath = list[str | int]
"""Keys of groups and positions in lists, from the whole config down to a value."""


def kinds_at(cls: ConfigClass, path: str) -> list[str]:
    """The kinds there are of the group at a dotted path, such as ``masking.ratio``."""
    return list(kinds_of(_classes_at(cls, {}, list(path.split(".")))))


def root_causes(
    error: ValidationError, values: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, ErrorDetails]]:
    """Problems with their paths, less those that pydantic adds because of others.

    A value that may be a number or a group is also said to be no number where it is a wrong group, and the
    reverse; a list of wrong items is also said to be too short.
    """
    found = [(_path(item, values), item) for item in error.errors(include_url=False)]
    for number, (path, item) in enumerate(found):
        if item["type"] in _CONSEQUENCES:
            others = [*found[:number], *found[number + 1 :]]
            inner = [other for at, other in others if at[: len(path)] == path]
            causes = [other for other in inner if other["type"] not in _CONSEQUENCES]
            if item["type"] == "too_short":  # wrong items are not counted, whatever is wrong
                causes = inner
            earlier = [other for at, other in found[:number] if at == path]
            if causes or earlier:
                continue
        yield path, item


def describe_problem(
    cls: ConfigClass, path: KeyPath, item: ErrorDetails, values: Mapping[str, Any]
) -> str:
    """What is wrong with a value, its path as it stands in the file, and what would be right."""
    location = ".".join(map(str, path))
    value, context = item.get("input"), item.get("ctx", {})
    if value is None and location and item["type"].endswith("_type"):
        return f"{location} has no value: give one, or leave the key out where it has a default"
    match item["type"]:
        case "extra_forbidden":
            names = _keys_at(cls, values, path[:-1])
            return f"unknown key {shown(location)}; {nearest(str(path[-1]), names)}"
        case "missing":
            return f"'{location}' is missing"
        case "union_tag_invalid":
            tag = str(context.get("tag"))
            names = [name.strip(" '") for name in str(context.get("expected_tags")).split(",")]
            at = f"{location}.kind" if location else "kind"
            return f"{at} is {shown(tag)}; {nearest(tag, names)}"
        case "union_tag_not_found":
            kinds = kinds_of(_classes_at(cls, values, path))
            at = location or "the whole"
            return f"{at} needs a 'kind', got {shown(value)}; valid: {', '.join(kinds)}"
        case "int_parsing_size":
            return f"{location} is {shown(value)}: it is too large"
        case "unknown_name":
            return f"{location} is {shown(value)}; {item['msg']}"
        case "unknown_key":
            return f"unknown key {shown(location)}; {item['msg']}"
        case "literal_error":
            expected = str(context.get("expected")).replace(" or ", ", ").split(",")
            names = [name.strip(" '") for name in expected]
            typed = ("always" if value else "never") if isinstance(value, bool) else str(value)
            return f"{location} is {_as_in_yaml(value)}; {nearest(typed, names)}"
        case "string_type" if isinstance(value, bool | int | float):
            return f"{location} is {_as_in_yaml(value)}; expected text: put it in quotes"
        case "model_type" | "model_attributes_type" | "dict_type":
            kinds = kinds_of(_classes_at(cls, values, path))
            meant = (
                "expected a group of keys"
                if not kinds
                else "expected a group of keys with a 'kind'"
            )
            if kinds:
                meant += f"; {nearest(value if isinstance(value, str) else '', kinds)}"
            return f"{location or 'the whole'} is {_as_in_yaml(value)}; {meant}"
        case "tuple_type" | "list_type":
            within = f": [{value}]" if isinstance(value, str | int | float) else ""
            return f"{location} is {_as_in_yaml(value)}; expected a list{within}"
        case "too_short" | "too_long":
            bound, number = ("least", "min_length"), ("most", "max_length")
            which, key = bound if item["type"] == "too_short" else number
            size = context.get(key)
            return (
                f"{location} is {_as_in_yaml(value)}; expected at {which} {size} "
                f"{'value' if size == 1 else 'values'}, and there {_are(context.get('actual_length'))}"
            )
    message = item["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    message = message.replace("Input should be", "it should be")
    if isinstance(value, Mapping) and item["type"] == "value_error":  # of several values together
        return f"{location}: {message}" if location else message
    return f"{location or 'the whole'} is {_as_in_yaml(value)}: {message}"


def unknown_name(name: str, valid: Iterable[str]) -> PydanticCustomError:
    """For validators to raise: a value that is none of the names there are."""
    return PydanticCustomError("unknown_name", "{nearest}", {"nearest": nearest(name, valid)})


def unknown_key(cls: ConfigClass, at: tuple[str, ...], valid: Iterable[str]) -> ValidationError:
    """For validators of ``cls`` to raise: a key, by its path within the config, that is none there is."""
    text = {"nearest": nearest(at[-1], valid)}
    error = PydanticCustomError("unknown_key", "{nearest}", text)
    return ValidationError.from_exception_data(
        cls.__name__, [{"type": error, "loc": at, "input": None}]
    )


def _are(number: Any) -> str:
    return "is 1" if number == 1 else f"are {number}"


def _as_in_yaml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else shown(value)


def _path(item: ErrorDetails, values: Mapping[str, Any]) -> KeyPath:
    """Keys and list positions of a problem's location, without the names of kinds and types in it."""
    path: KeyPath = []
    node: Any = values
    for part in item["loc"]:
        if isinstance(node, Mapping):
            there = part in node
        else:
            is_list = isinstance(node, list | tuple)
            there = is_list and isinstance(part, int) and part < len(node)
        if there:
            path.append(part)
            node = node[part]
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    return path


def _classes_at(cls: ConfigClass, values: Mapping[str, Any], path: KeyPath) -> list[ConfigClass]:
    """The config classes that the value at a path may be of; none where it is no group."""
    classes = list(config_classes(cls))
    node: Any = values
    for part in path:
        if isinstance(part, str):  # items of a list are of the list's own classes
            group = class_of(classes, node)
            field = None if group is None else group.model_fields.get(part)
            classes = [] if field is None else list(config_classes(field.annotation))
        try:
            node = node[part]
        except (LookupError, TypeError):
            node = None
    return classes


def class_of(classes: Sequence[ConfigClass], values: Any) -> ConfigClass | None:
    """The class among ``classes`` that values are of: the one of their ``kind``, or the only one."""
    if len(classes) == 1:
        return classes[0]
    kind = values.get("kind") if isinstance(values, Mapping) else None
    return kinds_of(classes).get(kind) if isinstance(kind, str) else None


def _keys_at(cls: ConfigClass, values: Mapping[str, Any], path: KeyPath) -> list[str]:
    """Valid keys of the group at a path."""
    node: Any = values
    for part in path:
        node = node[part]
    group = class_of(_classes_at(cls, values, path), node)
    return [] if group is None else list(group.model_fields)


def meanings_of(cls: ConfigClass) -> dict[str, str]:
    """Field → what it means: the text that stands below it in the class's code.

    Code is read when this is asked, not when the class is made, since most commands never ask. Fields of a
    class whose code is nowhere to be read have no text.
    """
    owners = [owner for owner in reversed(cls.__mro__) if issubclass(owner, BaseModel)]
    texts = {name: text for owner in owners[1:] for name, text in _texts_below(owner).items()}
    return {name: text for name, text in texts.items() if name in cls.model_fields}


@cache
def _texts_below(owner: ConfigClass) -> dict[str, str]:
    """The texts below the names that a class itself declares."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = inspect.cleandoc(text)
    return texts


def kinds_of(classes: Sequence[ConfigClass]) -> dict[str, ConfigClass]:
    """Kind → class, for classes that have kinds."""
    return {
        str(kind): group
        for group in classes
        if "kind" in group.model_fields
        for kind in get_args(group.model_fields["kind"].annotation)
    }


def config_classes(annotation: Any) -> Iterator[ConfigClass]:
    """The config classes that a value of an annotation may be of: members, for a family of kinds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kinds = getattr(annotation, "kinds", dict)
        yield from kinds().values() or (annotation,)
    for argument in get_args(annotation):
        yield from config_classes(argument)
