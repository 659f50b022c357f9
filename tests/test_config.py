"""Configs: one grammar for changes, files read with care, refusals that name place and way out."""

from __future__ import annotations

import pytest

from chronomask.config import apply_overrides, merge, nested, parse_override
from chronomask.errors import UsageError


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("masking.ratio.base=0.3", "masking.ratio.base", 0.3),
        (" steps = 5", "steps", 5),
        ("a.b={kind: x, list: [1, two]}", "a.b", {"kind": "x", "list": [1, "two"]}),
        ("name=a=b", "name", "a=b"),
        ("a=", "a", None),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, path: str, value: object) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(UsageError, match=r"not of the form key\.subkey=value"):
        parse_override(text)


def test_dotted_keys_mean_groups_of_keys() -> None:
    assert nested({"a.b.c": 1, "a.d": 2, "e": {"f.g": 3}}) == {
        "a": {"b": {"c": 1}, "d": 2},
        "e": {"f.g": 3},
    }


def test_a_kind_that_changes_drops_what_belonged_to_the_one_before() -> None:
    before = {"ratio": {"kind": "constant", "base": 0.2}}
    assert apply_overrides(before, ["ratio.kind=linear"]) == {"ratio": {"kind": "linear"}}
    assert apply_overrides(before, ["ratio.kind=constant"]) == before
    for order in (1, -1):
        overrides = ["ratio.kind=linear", "ratio.start=0.3"][::order]
        assert apply_overrides(before, overrides) == {"ratio": {"kind": "linear", "start": 0.3}}


def test_an_empty_group_empties_what_is_there() -> None:
    values = {"overrides": {"hidden_size": 1}, "other": {"a": 1}}
    assert apply_overrides(values, ["overrides={}"]) == {"overrides": {}, "other": {"a": 1}}
    assert merge(values, {}) == values


def test_an_override_below_a_value() -> None:
    with pytest.raises(UsageError, match="steps is 3, not a group of keys"):
        apply_overrides({"steps": 3}, ["steps.more=1"])
