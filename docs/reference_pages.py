"""The reference pages, made of the code itself: every config key, every command, every name of the face.

    python -m docs.reference_pages FOLDER

`make docs` calls it; nothing it writes is kept in the repository.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

import chronomask
from chronomask.cli import app
from chronomask.config import Alternative, Config
from chronomask.config_errors import config_classes, kinds_of, meanings_of
from chronomask.evaluate.tasks import REGISTRY
from chronomask.prepare.config import PrepareConfig
from chronomask.study.config import StudyConfig
from chronomask.train.config import RunConfig

__all__ = ["write_reference"]

ROOTS: dict[str, tuple[str, type[Config], str]] = {
    "run": (
        "A run",
        RunConfig,
        "What `chronomask pretrain` takes: as YAML files, as flags, and as `--set KEY=VALUE`.",
    ),
    "preparation": (
        "A preparation",
        PrepareConfig,
        "What `chronomask prepare` takes with `--config`, and as `--set KEY=VALUE`.",
    ),
    "study": ("A study", StudyConfig, "What `chronomask study run` takes."),
}
NAMES_OF_NUMBERS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def write_reference(folder: Path) -> None:
    """Write all pages to ``folder``, those of configs, of tasks, of commands and of the face."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, root, lead) in ROOTS.items():
        (folder / f"{name}.md").write_text(page_of_config(title, root, lead), encoding="utf-8")
    (folder / "tasks.md").write_text(page_of_tasks(), encoding="utf-8")
    (folder / "commands.md").write_text(page_of_commands(), encoding="utf-8")
    (folder / "api.md").write_text(page_of_face(), encoding="utf-8")


def page_of_config(title: str, root: type[Config], lead: str) -> str:
    """Every key below a config class, group by group, each kind with its own."""
    sections = [f"# {title}: every key", lead, _how_to_read()]
    sections += [section_of(path, group) for path, group in groups_below(root)]
    return "\n\n".join(sections) + "\n"


def groups_below(root: type[Config]) -> list[tuple[str, type[Config]]]:
    """A config class and those its fields take, each once, at the shortest path to it.

    They are in the order of the root's fields; what has a page of its own is left to that.
    """
    waiting: list[tuple[str, type[Config]]] = [("", root)]
    found: dict[type, str] = {group: "" for _, group, _ in ROOTS.values() if group is not root}
    others = set(found)
    while waiting:
        path, group = waiting.pop(0)
        if group in found:
            continue
        found[group] = path
        waiting += [
            (f"{path}.{name}".strip("."), inner)
            for name, field in group.model_fields.items()
            for inner in config_classes(field.annotation)
            if inner.__module__.startswith("chronomask.")  # others' kinds have pages of their own
        ]
    order = ["", *root.model_fields]
    paths = [(path, group) for group, path in found.items() if group not in others]
    return sorted(paths, key=lambda item: order.index(item[0].partition(".")[0]))


def section_of(path: str, group: type[Config]) -> str:
    """A heading, what the group is, and a table of its keys."""
    kinds = list(kinds_of([group]))
    name = f"`{path}`" if path else "The whole"
    heading = f"{name}, kind `{kinds[0]}`" if kinds else name
    meanings = meanings_of(group)
    keys = [
        f"| `{key}` | {type_of(field)} | {default_of(field)} | {cell(markdown_of(meanings.get(key, '')))} |"
        for key, field in group.model_fields.items()
        if key != "kind"
    ]
    table = ["| key | what it takes | default | what it means |", "|---|---|---|---|", *keys]
    about = inspect.cleandoc(group.__doc__ or "").partition("\n\n")[0]
    return "\n".join(
        [f"## {heading}", "", markdown_of(about), "", *(table if keys else ["It has no keys."])]
    )


def type_of(field: FieldInfo) -> str:
    """What a key takes, with its bounds, in words."""
    bounds = [bound for item in field.metadata if (bound := bound_of(item))]
    return cell(", ".join([words_of(field.annotation), *bounds]))


def words_of(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in NAMES_OF_NUMBERS:
        return NAMES_OF_NUMBERS[annotation]
    if origin is Annotated:
        bounds = [bound for item in arguments[1:] if (bound := bound_of(item))]
        return ", ".join([words_of(arguments[0]), *bounds])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        inner = dict.fromkeys(words_of(item) for item in arguments if item is not NoneType)
        return " or ".join([*inner, *(["`null`"] if NoneType in arguments else [])])
    if origin in (tuple, list):
        return f"a list, each {words_of(arguments[0])}"
    if origin is dict:
        return f"keys with {words_of(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Alternative):
        members = kinds_of(list(config_classes(annotation)))
        return "a group of kind " + ", ".join(f"`{kind}`" for kind in members)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        kinds = kinds_of([annotation])
        return f"a group of kind `{next(iter(kinds))}`" if kinds else "a group"
    return "any value"


def bound_of(item: Any) -> str:
    """A bound of a number or of a list's length, in words."""
    match item:
        case Ge(ge=bound):
            return f"at least {number(bound)}"
        case Gt(gt=bound):
            return f"above {number(bound)}"
        case Le(le=bound):
            return f"at most {number(bound)}"
        case Lt(lt=bound):
            return f"below {number(bound)}"
        case MinLen(min_length=bound):
            return f"at least {bound} of them"
        case MaxLen(max_length=bound):
            return f"at most {bound} of them"
        case FieldInfo():
            return ", ".join(bound for inner in item.metadata if (bound := bound_of(inner)))
    return ""


def number(bound: Any) -> str:
    """A bound; large powers as such, which nobody counts the digits of."""
    for base in (10, 2):
        power = round(math.log(bound, base)) if isinstance(bound, int) and bound > 10**6 else 0
        if power and base**power == bound:
            return f"{base}^{power}"
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def default_of(field: FieldInfo) -> str:
    """The default as it would stand in a file; a group's by its kind, and by what it has other than that."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be given"
    if isinstance(value, Config):
        own = changes_of(value)
        kind = getattr(value, "kind", None)
        if not own:
            return f"`{kind}`" if kind else "its own defaults"
        written = yaml.safe_dump(
            {"kind": kind, **own} if kind else own,
            default_flow_style=True,
            sort_keys=False,
            width=1000,
        )
        return cell(f"`{written.strip()}`")
    plain = to_jsonable_python(value)
    words = {None: "`null`", True: "`true`", False: "`false`"}
    shown = words[plain] if plain is None or isinstance(plain, bool) else f"`{plain}`"
    return cell(shown if plain != "" else "empty")


def changes_of(group: Config) -> dict[str, Any]:
    """What a group has other than the defaults of its kind; where a key must be given, all of it."""
    kept = {key: value for key, value in group.to_dict().items() if key != "kind"}
    try:
        usual = type(group)().to_dict()
    except ValidationError:
        return kept
    return {key: value for key, value in kept.items() if value != usual[key]}


def markdown_of(text: str) -> str:
    """A docstring's marks as those of Markdown: ``code`` as `code`, roles as the names they point to."""
    for role in ("class", "meth", "func", "attr", "mod", "data"):
        text = text.replace(f":{role}:`~", "`").replace(f":{role}:`", "`")
    return text.replace("``", "`")


def cell(text: str) -> str:
    """Text as a table's cell, on one line."""
    return " ".join(text.replace("|", "\\|").split())


def page_of_tasks() -> str:
    """Every downstream task with the settings of its recipe."""
    sections = [
        "# Tasks: every setting",
        "Settings are changed with `chronomask evaluate --set`: `epochs=1` reaches every task that has the "
        "key, `mrpc.epochs=5` one task, `glue.epochs=5` a family.",
    ]
    for task in REGISTRY.values():
        config = type(task.config)
        table = section_of(task.name, config).partition("\n")[2]
        sections.append(f"## `{task.name}`, of the family `{task.family}`\n{table}")
    return "\n\n".join(sections) + "\n"


def page_of_commands() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    sections = ["# Commands", "Every command also says this with `--help`."]
    for words, command in commands_below(typer.main.get_command(app), ["chronomask"]):
        rows = [
            f"| {cell(option_of(parameter))} | {cell(str(getattr(parameter, 'help', '') or ''))} |"
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
        ]
        table = "\n".join(["| argument or option | what it does |", "|---|---|", *rows])
        about = inspect.cleandoc(command.help or "")
        sections.append(f"## `{' '.join(words)}`\n\n{about}\n\n{table}")
    return "\n\n".join(sections) + "\n"


def commands_below(command: Any, words: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """The commands that do something, with the words that call them."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield list(words), command
        return
    for name, below in inner.items():
        yield from commands_below(below, [*words, name])


def option_of(parameter: Any) -> str:
    """How an argument or an option is written."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def page_of_face() -> str:
    """Every name of ``import chronomask as cm`` with its signature and docstring."""
    sections = [
        "# The library: every name of `import chronomask as cm`",
        "Nothing is loaded before a name is used. The pages beside this one describe configs key by key.",
    ]
    for name in chronomask.__all__:
        value = getattr(chronomask, name)
        sections.append(f"## `cm.{name}`\n\n{directive_of(name, value)}")
    return "\n\n".join(sections) + "\n"


def directive_of(name: str, value: Any) -> str:
    """The directive that shows a name of the face; the kinds of a schedule stand in the page of a run."""
    room = chronomask._FUNCTION_OF_ROOM.get(name)
    if room is not None:
        return autodoc("autofunction", ".".join(room))
    if inspect.ismodule(value):
        kinds = "; ".join(f"`cm.{name}.{kind}`" for kind in getattr(value, "__all__", ()))
        return f"{markdown_of(inspect.cleandoc(value.__doc__ or ''))}\n\nIn it: {kinds}."
    path = f"{chronomask._HOME_OF[name]}.{name}"
    if not inspect.isclass(value):
        return autodoc("autofunction" if callable(value) else "autodata", path)
    if issubclass(value, Config):
        about = markdown_of(inspect.cleandoc(value.__doc__ or ""))
        return f"{about}\n\nIts keys are on a page of their own."
    members = () if issubclass(value, Exception) else (":members:",)
    return autodoc("autoclass", path, *members)


def autodoc(directive: str, path: str, *options: str) -> str:
    """A directive of Sphinx's autodoc within Markdown."""
    lines = [f".. {directive}:: {path}", *(f"   {option}" for option in options)]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"


def _how_to_read() -> str:
    return (
        "A key's path joins the groups it lies in with dots, such as `masking.ratio.base`. Where a group has "
        "a `kind`, the kind decides which other keys it has, and its name alone stands for its group with "
        "the defaults: `content: ptw`. A `null` in the defaults means that nothing is set."
    )


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
