"""Options that several commands share, and the way from a flag to a change of a config.

Every flag that sets a value of a config becomes a :class:`~chronomask.config_layers.Layer`, as ``--set``
does, so that the config's own checks say what is wrong with it, and blame the flag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from chronomask.errors import UsageError, shown

if TYPE_CHECKING:
    from chronomask.config_layers import Layer

__all__ = [
    "AHEAD",
    "HELP_FLAGS",
    "Commands",
    "Content",
    "Device",
    "Overrides",
    "Precision",
    "PricePerHour",
    "Quiet",
    "Ratio",
    "of_group",
    "of_kind",
    "of_overrides",
    "of_ratio",
    "of_text",
    "of_value",
    "recipe_names",
    "show_help",
]

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""


class _OneValueEach(TyperCommand):
    """A command that refuses an option given twice where one value counts: the last, without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            takes_one = not (
                option.multiple or getattr(option, "is_flag", False) or option.nargs < 0
            )
            if takes_one and given.count(option) > 1 and not ctx.resilient_parsing:
                ctx.fail(
                    f"{option.opts[0]} is given {given.count(option)} times and takes one value"
                )
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """Commands, each option of which that takes one value is given once."""

    def command(self, *name: Any, **settings: Any) -> Callable[[Any], Any]:
        """As typer's."""
        return super().command(*name, **{"cls": _OneValueEach} | settings)


CONFIG_PANEL = "Values of the config"
"""Heading of the flags that set one, in the help of every command."""


def config_flag(metavar: str, text: str, *names: str) -> Any:
    """An option that sets a value of the config; ``metavar`` says what is given, ``text`` what it means."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=CONFIG_PANEL)


Overrides = Annotated[
    list[str] | None,
    config_flag(
        "KEY=VALUE",
        "Change any other value by its path, such as masking.ratio.end=0.2; repeatable.",
        "--set",
    ),
]
"""``--set``: for what has no flag of its own; wins over flags."""
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
"""``--quiet``: progress is not shown."""
AHEAD = "Looking ahead: --dry-run"
"""Heading of the flags of a dry run, in the help of ``pretrain``."""


def _money(text: str) -> float:
    """A price: a finite number that is not negative."""
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise UsageError(f"--price-per-hour {shown(text)}: give a number, such as 2.50")
    return price


PricePerHour = Annotated[
    float | None,
    typer.Option(
        parser=_money,
        metavar="MONEY",
        help="What a device costs an hour, in any currency; the plan then has the cost in it.",
    ),
]
"""``--price-per-hour``: for the plan of a study and for a dry run."""
Device = Annotated[str | None, config_flag("NAME", "auto, cpu or cuda.")]
"""``--device``: where training runs."""
Precision = Annotated[str | None, config_flag("NAME", "auto, fp32 or bf16.")]
"""``--precision``: of the forward and backward pass."""
Ratio = Annotated[
    str | None,
    config_flag(
        "NUMBER|START:END|KIND",
        "How much is masked: 0.15 throughout, 0.30:0.15 for a straight line (the default), or a "
        "kind of schedule, such as cosine_decay, the published one.",
    ),
]
"""``--ratio``: the ratio schedule."""
Content = Annotated[
    str | None,
    config_flag("KIND", "Which words are masked more often: none, ptw, token_accuracy, …"),
]
"""``--content``: the content schedule."""


def of_group(flag: str, text: str, path: str, value: Any) -> list[Layer]:
    """The change that a flag makes whose ``text`` stands for a value of more than one part."""
    from chronomask.config_layers import Layer

    return [Layer(f"{flag} {text if text.isprintable() else shown(text)}".strip(), {path: value})]


def of_text(flag: str, path: str, text: object) -> list[Layer]:
    """The change that a flag makes whose text is the value itself; none if it was not given."""
    return [] if text is None else of_group(flag, str(text), path, str(text))


def of_value(flag: str, path: str, text: object) -> list[Layer]:
    """The change that a flag makes whose text is read as ``--set`` reads values, for numbers."""
    from chronomask.yaml_text import from_yaml

    if text is None:
        return []
    return of_group(flag, str(text), path, from_yaml(str(text), f"{flag} {shown(text)}"))


def of_kind(flag: str, path: str, kind: str | None) -> list[Layer]:
    """The change that a flag makes which names the kind of a group."""
    return of_text(flag, f"{path}.kind", kind)


def of_ratio(text: str | None) -> list[Layer]:
    """The change that ``--ratio`` makes: a number, two numbers with a colon, or a kind of schedule."""
    if text is None:
        return []
    from chronomask.masking.ratio import course_group
    from chronomask.yaml_text import from_yaml

    value = from_yaml(text, f"--ratio {shown(text)}")
    group = course_group(value)
    if group != value:
        return of_group("--ratio", text, "masking.ratio", group)
    if text.lstrip("+-.")[:1].isdigit():  # nearly a number, such as 30%, and no kind
        return of_group("--ratio", text, "masking.ratio", text)
    return of_kind("--ratio", "masking.ratio", text)


def of_overrides(overrides: Iterable[str] | None) -> list[Layer]:
    """The changes that ``--set`` makes, in order."""
    from chronomask.config_layers import Layer

    return [Layer.of_override(text) for text in overrides or ()]


def recipe_names(*groups: str) -> Callable[[str], list[tuple[str, str]]]:
    """For completion in a shell: the recipes of groups whose names begin as typed, with what they are."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from chronomask.recipes import recipes

        found = [recipe for group in groups for recipe in recipes(group)]
        return [(r.name, r.summary) for r in found if r.name.startswith(incomplete)]

    return complete


def show_help(context: typer.Context) -> None:
    """Print the help of a group of commands where none of them was named."""
    if context.invoked_subcommand is None:
        print(context.get_help())
