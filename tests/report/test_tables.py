"""What tables of a page say of arms and their configs."""

from __future__ import annotations

from chronomask.masking.config import MaskingConfig
from chronomask.report.comparison import ABSENT
from chronomask.report.tables import arms_table, class_shares, config_table, data_rows, parameters


def test_every_field_in_which_an_arm_differs_is_shown_with_all_values() -> None:
    study = {
        "arms": [
            {"name": "a", "differs": {}},
            {"name": "b", "differs": {"peak": [0.1, 1 / 3], "masking.kind": ["ptw", "none"]}},
            {"name": "c", "differs": {"keep": [None, 5], "on": [True, False]}},
        ]
    }
    table = config_table(study, {"a": 0, "b": 1, "c": 2})
    assert table["names"] == ["a", "b", "c"]
    assert table["rows"] == [
        ("keep", [ABSENT, ABSENT, "5"]),
        ("masking.kind", ["ptw", "none", "ptw"]),
        ("on", ["true", "true", "false"]),
        ("peak", ["0.1", "0.333333", "0.1"]),
    ]


def test_each_size_of_a_model_is_named_once() -> None:
    sizes = [3_100_000.0, None, 12_000.0, 3_100_000.0]
    assert parameters({"arms": [{"parameters": size} for size in sizes] + [{}]}) == [
        "3,100,000",
        "12,000",
    ]


def test_what_the_data_are() -> None:
    train = {
        "documents": 12_000,
        "tokens_per_word": 1.25,
        "unknown_tokens": 0,
        "word_share_per_class": {"DET": 0.1, "NOUN": 0.9, "X": 0.0},
    }
    data = {
        "fingerprint": "ab12",
        "row_length": 1024,
        "statistics": {"splits": {"held_out": train}},
    }
    assert data_rows(data) == [
        ("fingerprint", "ab12"),
        ("tokens in a row", "1,024"),
        ("held out: documents", "12,000"),
        ("held out: tokens per word", "1.25"),
        ("held out: unknown tokens", "0"),
    ]
    assert class_shares(data) == []
    shares = class_shares({"statistics": {"splits": {"train": train}}})
    assert [name for name, _ in shares] == ["NOUN", "DET"]
    assert data_rows({}) == class_shares({}) == []


def test_an_arm_that_differs_in_any_part_of_its_masking_says_so() -> None:
    masking = MaskingConfig().to_dict()
    changed = {
        "mask_replace_prob": 0.65,
        "loss_weight": {"kind": "inverse_ratio"},
        "budget": "batch",
    }
    differs = {
        "masking.mask_replace_prob": [0.8, 0.65],
        "masking.loss_weight.kind": ["equal", "inverse_ratio"],
        "masking.budget": ["row", "batch"],
    }
    arms = [
        {"name": "a", "differs": {}, "masking": masking, "runs": [], "equal_labels": None},
        {
            "name": "b",
            "differs": differs,
            "masking": masking | changed,
            "runs": [],
            "equal_labels": None,
        },
    ]
    usual, other = (row["what"] for row in arms_table({"arms": arms}, {"a": 0, "b": 1})["rows"])
    assert other == f"{usual}, budget batch, loss weight inverse ratio, mask replace prob 0.65"
