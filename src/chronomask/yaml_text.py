"""Plain values from YAML text, and back: what could surprise is refused with the file and the line.

YAML has traps that a config must not fall into. Here a key that is given twice is refused; keys are text
as written, so ``no`` and ``15`` are keys like any other; ``1e4`` is a number, ``010`` and dates are text;
there is no infinity, no tag beyond those of plain values, and no text with control characters. How much a
text may hold, and how deep, is bounded after aliases are counted as often as they are used. JSON is YAML.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from chronomask.errors import UsageError, shown
from chronomask.folders import what_it_is
from chronomask.storage import READABLE

__all__ = ["as_yaml", "control_character", "from_yaml", "read_text"]

MAX_BYTES = 4 << 20
"""Largest config file."""
MAX_DEPTH = 40
"""Groups and lists within each other."""
MAX_VALUES = 100_000
"""Values of one text, those behind an alias counted each time it is used."""

_TAG = "tag:yaml.org,2002:"
_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)")
_TRUTH = re.compile(r"(?i:yes|no|true|false|on|off)")
_NOTHING = re.compile(r"~|null|Null|NULL|")
_MERGE = re.compile("<<")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the numbers people mean; used to compose nodes, never to construct objects."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # PyYAML's own way to hold them


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` or any other reader of YAML would not take for text."""


for _kind, _pattern, _starts in (
    ("bool", _TRUTH, "yYnNtTfFoO"),
    ("null", _NOTHING, ["~", "n", "N", ""]),
    ("int", _WHOLE, "-+0123456789"),
    ("float", _NUMBER, "-+0123456789."),
    ("merge", _MERGE, "<"),
):
    _whole = re.compile(rf"(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(_TAG + _kind, _whole, list(_starts))
_Dumper.add_implicit_resolver(
    _TAG + "float", re.compile(rf"(?:{_NUMBER.pattern})$"), list("-+0123456789.")
)


def read_text(path: Path) -> str:
    """The text of a config file; raises UsageError that names it where it cannot be read as UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"config file {path} does not exist") from None
    except IsADirectoryError:
        raise UsageError(
            f"config file {path} is a folder: name a file in it{what_it_is(path)}"
        ) from None
    except PermissionError as error:
        raise UsageError(
            f"config file {path} cannot be read: {error.strerror}; {READABLE}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"config file {shown(str(path))} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise UsageError(
            f"config file {path} is larger than {MAX_BYTES >> 20} MiB, which is too large for a config"
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"config file {path} is UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"config file {path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: "
            "save the file as UTF-8"
        ) from None


def from_yaml(text: str, where: str) -> Any:
    """The plain value of a YAML text: dict with text keys, list, str, int, float, bool or None.

    ``where`` names the text in errors; to it the line is added where there are several. Raises UsageError
    for everything the module refuses.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return None if root is None else _Reading(text, where).value(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refusal(
            text, where, line, f"character {_code(error.character)} is not allowed"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        line = 1 if mark is None else mark.line + 1
        raise _refusal(text, where, line, f"not valid YAML: {problem}") from None
    except RecursionError:
        raise _too_deep(text, where, 1) from None


def as_yaml(values: Any) -> str:
    """YAML text that :func:`from_yaml` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def control_character(text: str) -> str | None:
    """What a name or path must not hold: the first control character or line break, as U+000A; or None."""
    found = _CONTROL.search(text)
    return None if found is None else _code(found.group())


class _Reading:
    """One text on its way from nodes to values; counts what it makes."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self.num_values = 0

    def value(self, node: Node, depth: int = 0) -> Any:
        """The plain value of a node."""
        self.num_values += 1
        if depth > MAX_DEPTH:  # also where an alias stands within what it names
            raise _too_deep(self.text, self.where, node.start_mark.line + 1)
        if self.num_values > MAX_VALUES:
            raise self._refusal(
                node, f"more than {MAX_VALUES:,} values, aliases counted: no config"
            )
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        raise self._refusal(node, f"the tag {_plain_tag(node)} is not allowed in a config")

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        """A group; ``<<`` puts another group's keys under its own."""
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self._refusal(key_node, "a key is a list or a group; it must be text")
            value = self.value(value_node, depth + 1)
            if key_node.tag == _TAG + "merge":
                for group in value if isinstance(value, list) else [value]:
                    if not isinstance(group, dict):
                        raise self._refusal(key_node, "'<<' needs a group of keys")
                    merged = group | merged
                continue
            key = self._text(key_node)
            if key in own:
                raise self._refusal(key_node, f"key {shown(key)} is given twice")
            own[key] = value
        return merged | own if merged else own

    def _scalar(self, node: ScalarNode) -> Any:
        """A text, a number, a truth value or nothing, as its form or its tag says."""
        text = node.value
        match node.tag.removeprefix(_TAG):
            case "str" | "merge":
                return self._text(node)
            case "null":
                return None
            case "bool" if _TRUTH.fullmatch(text):
                return text.lower() in ("yes", "true", "on")
            case "int" if _WHOLE.fullmatch(text):
                if len(text) > 40:
                    raise self._refusal(node, f"{shown(text)} is too large a number")
                return int(text.replace("_", ""), 16 if "x" in text else 10)
            case "float" if _NUMBER.fullmatch(text) or _WHOLE.fullmatch(text):
                number = math.nan if "n" in text.lower() else float(text.replace("_", ""))
                if not math.isfinite(number):
                    raise self._refusal(node, f"{shown(text)} is not a finite number")
                return number
            case "bool" | "int" | "float":
                raise self._refusal(
                    node, f"{shown(text)} is not what its tag {_plain_tag(node)} says"
                )
        raise self._refusal(node, f"the tag {_plain_tag(node)} is not allowed in a config")

    def _text(self, node: ScalarNode) -> str:
        code = control_character(node.value)
        if code is not None:
            raise self._refusal(
                node,
                f"{shown(node.value)} holds the control character or line break {code}: remove it",
            )
        return node.value

    def _refusal(self, node: Node, problem: str) -> UsageError:
        return _refusal(self.text, self.where, node.start_mark.line + 1, problem)


def _refusal(text: str, where: str, line: int, problem: str) -> UsageError:
    place = f"{where}, line {line}" if "\n" in text.strip() else where
    return UsageError(f"{place}: {problem}")


def _too_deep(text: str, where: str, line: int) -> UsageError:
    return _refusal(
        text, where, line, f"more than {MAX_DEPTH} groups or lists within each other: no config"
    )


def _plain_tag(node: Node) -> str:
    return shown(node.tag.replace(_TAG, "!!"))


def _code(character: str | int) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"
