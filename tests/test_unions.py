"""Every member of every union of configs: it parses at its defaults, survives a file, and is documented.

Unions, and families of alternatives, are found from the configs of runs, preparations, studies and tasks,
so that a new member is here as soon as it is in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from chronomask.config import Alternative, Config, json_schema
from chronomask.config_errors import meanings_of
from chronomask.errors import UsageError
from chronomask.evaluate.tasks import REGISTRY
from chronomask.prepare.config import PrepareConfig
from chronomask.study.config import StudyConfig
from chronomask.train.config import RunConfig
from tests.support.fuzz_configs import check_config

REQUIRED: dict[str, dict[str, Any]] = {
    "checkpoint": {"path": "model"},
    "extended": {"path": "tokenizer"},
    "files": {"path": "corpus"},
    "fixed": {"weights": {"NOUN": 1.0}},
    "folder": {"path": "tokenizer"},
    "hub": {"name": "owner/name"},
    "mixed": {"parts": [{"share": 1.0, "strategy": {"kind": "span"}}]},
    "mixture_rows": {"parts": [{"share": 1.0, "law": {"kind": "uniform_rows"}}]},
    "phased": {"phases": [{"until": 1, "strategy": {"kind": "token"}}]},
    "phases": {"phases": [{"until": 0.5, "ratio": 0.3}, {"until": 1, "ratio": 0.15}]},
    "sequence": {"parts": [{"until": 1, "schedule": {"kind": "linear"}}]},
    "spacy": {"name": "de_core_news_sm"},
    "stanza": {"language": "de"},
}
"""Values of the fields without a default, by kind."""

QUANTITY = re.compile(
    r"\b(steps?|rows?|tokens?|bytes?|characters?|words?|documents?|sentences?|examples?|threads?|pieces?|"
    r"process(es)?|jobs?|cores|ids?|layers?|labels?|iterations|pass(es)?|seeds?|bands?|buckets?|hash(es)?|"
    r"observations?|shares?|parts?|ratio|probability|progress|decay|averages?|gain|weights?|factor|length|"
    r"multiplied|norm|gradients?|rate|loss(es)?|deviations?|FLOP/s|checkpoints?|peaks?|larger|smaller|lower|"
    r"number|units|[pαβ])\b",
    re.IGNORECASE,
)
"""Words one of which tells what a number counts or measures."""


def members_in(annotation: Any) -> Iterator[type[Config]]:
    """The config classes that a type names; for a family, the members that this package defines."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        family = issubclass(annotation, Alternative) and annotation.kinds().values()
        own = [cls for cls in family or () if cls.__module__.startswith("chronomask.")]
        yield from own or [annotation]
    for argument in get_args(annotation):
        yield from members_in(argument)


def classes_in(annotation: Any, found: dict[type[Config], None]) -> None:
    """Collect every config class that values of a type hold, and those within them."""
    for cls in members_in(annotation):
        if cls not in found:
            found[cls] = None
            for field in cls.model_fields.values():
                classes_in(field.annotation, found)


def every_class() -> list[type[Config]]:
    found: dict[type[Config], None] = {}
    recipes = {type(entry.config) for entry in REGISTRY.values()}
    for root in (RunConfig, PrepareConfig, StudyConfig, *sorted(recipes, key=str)):
        classes_in(root, found)
    return list(found)


CLASSES = every_class()


def kinds_of(cls: type[Config]) -> tuple[str, ...]:
    """The kinds that a member of a union goes by; none for other configs."""
    field = cls.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


MEMBERS = [
    pytest.param(cls, kind, id=f"{cls.__name__}-{kind}")
    for cls in CLASSES
    for kind in kinds_of(cls)
]


def values_of(cls: type[Config], kind: str) -> dict[str, Any]:
    """The fewest values that make a member."""
    return {"kind": kind, **REQUIRED.get(kind, {})}


def test_every_union_is_among_them() -> None:
    """By one member of each: ratio, content and its map, strategy, model, optimiser, learning rate,
    outliers, loggers; source, tokenizer, tagger, filter, deduplication, packing, executor."""
    kinds = {kind for cls in CLASSES for kind in kinds_of(cls)}
    assert kinds >= {
        "cosine_decay", "ptw", "softmax", "span", "checkpoint", "muon", "wsd", "skip", "wandb",
        "files", "unigram", "stanza", "c4_quality", "minhash", "documents", "ray",
    }  # fmt: skip
    assert {type(entry.config) for entry in REGISTRY.values()} <= set(CLASSES)
    assert len(MEMBERS) > 50


def test_values_are_given_only_where_there_is_no_default() -> None:
    needed = {
        kind: {name for name, field in cls.model_fields.items() if field.is_required()} - {"kind"}
        for cls in CLASSES
        for kind in kinds_of(cls)
    }
    assert {kind: set(values) for kind, values in REQUIRED.items()} == {
        kind: names for kind, names in needed.items() if names
    }


@pytest.mark.parametrize(("cls", "kind"), MEMBERS)
def test_it_parses_at_its_defaults_and_survives_a_file(
    cls: type[Config], kind: str, tmp_path: Path
) -> None:
    config = cls.parse(values_of(cls, kind))
    check_config(config)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert cls.load(file) == config
    assert hash(str(config.to_dict())) == hash(str(cls.load(file).to_dict()))


@pytest.mark.parametrize(("cls", "kind"), MEMBERS)
def test_a_key_it_does_not_have_is_refused_with_those_it_has(cls: type[Config], kind: str) -> None:
    with pytest.raises(UsageError, match=r"unknown key 'no_such_key'; .*[Vv]alid: ") as refused:
        cls.parse({**values_of(cls, kind), "no_such_key": 1})
    for name in cls.model_fields:
        assert name in str(refused.value)


def places_of_kinds() -> Iterator[tuple[type[Config], str, Any]]:
    """Every field whose value is a member of a union, with the field's type."""
    for cls in CLASSES:
        for name, field in cls.model_fields.items():
            found = dict.fromkeys(part for part in members_in(field.annotation) if kinds_of(part))
            if found:
                yield cls, name, list(found)


@pytest.mark.parametrize(
    ("members"), [pytest.param(m, id=f"{c.__name__}.{n}") for c, n, m in places_of_kinds()]
)
def test_members_of_a_union_have_different_kinds(members: list[type[Config]]) -> None:
    kinds = [kind for cls in members for kind in kinds_of(cls)]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_it_is_documented(cls: type[Config]) -> None:
    """A sentence that says what it is; for every field what it means, for numbers what they count."""
    first = (cls.__doc__ or "").strip().partition("\n\n")[0]
    assert first.endswith("."), "its docstring begins with no sentence"
    assert len(first.split()) >= 3
    meanings = meanings_of(cls)
    for name, field in cls.model_fields.items():
        if name == "kind":
            continue
        assert meanings.get(name), f"{name} has no docstring"
        if {int, float} & set(types_in(field.annotation)):
            assert QUANTITY.search(meanings[name]), f"{name}: {meanings[name]}"


def types_in(annotation: Any) -> Iterator[type]:
    """The plain types that values of a type are of."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return
    if not arguments and isinstance(annotation, type):
        yield annotation
    for argument in arguments:
        yield from types_in(argument)


def test_editors_are_told_what_fields_mean() -> None:
    schema = json_schema(RunConfig)
    assert schema["properties"]["steps"]["description"] == "optimiser steps of the whole run"
    assert "LinearDecay" in schema["$defs"]


def test_the_name_of_a_kind_is_its_group_under_a_dotted_key_too() -> None:
    config = RunConfig.parse({"data": "d", "masking": {"ratio": 0.2}})
    for changed in (
        config.replace(["masking.content=ptw"]),
        RunConfig.parse({"data": "d", "masking.ratio": 0.2, "masking.content": "ptw"}),
    ):
        assert changed == config.replace(["masking.content.kind=ptw"])


def test_a_word_that_yaml_takes_for_a_truth_value_is_shown_as_one() -> None:
    with pytest.raises(UsageError, match="compile is false; did you mean 'never'"):
        RunConfig.parse_with({"data": "d"}, ["compile=no"])
    with pytest.raises(UsageError, match="compile is true; did you mean 'always'"):
        RunConfig.parse_with({"data": "d"}, ["compile=yes"])
