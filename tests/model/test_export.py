"""What a model card says."""

from __future__ import annotations

from typing import Any

import pytest

from chronomask.masking.config import MaskingConfig
from chronomask.model.export import model_card

CHANGES = "under masking that changes over\ntraining."
STAYS = "under masking that stays the same\nover training."


@pytest.mark.parametrize(
    ("masking", "said"),
    [
        ({"ratio": 0.15}, STAYS),
        ({"ratio": {"kind": "uniform_rows"}}, STAYS),
        ({}, CHANGES),
        ({"ratio": 0.15, "content": "ptw"}, CHANGES),
        ({"ratio": {"kind": "uniform_rows", "high": {"kind": "linear", "start": 0.5}}}, CHANGES),
        ({"ratio": 0.15, "strategy": "span"}, STAYS),
        ({"ratio": 0.15, "strategy": "explored"}, CHANGES),
        ({"ratio": 0.15, "mask_replace_prob": {"kind": "linear", "start": 0.9}}, CHANGES),
    ],
)
def test_a_card_says_of_masking_what_is_true_of_the_run(masking: dict[str, Any], said: str) -> None:
    counters = dict.fromkeys(("step", "steps", "tokens_seen", "masked_tokens"), 1)

    def card(described: dict[str, Any]) -> str:
        return model_card(
            name="a", model_type="bert", num_parameters=1, data_fingerprint="f", masking=described,
            counters=counters, losses={},
        )  # fmt: skip

    own = MaskingConfig.of(masking).to_dict()
    assert said in card(own)
    beside = card({"masking": own, "late_masks": {"kind": "other"}})
    assert (CHANGES in beside) == (said == CHANGES)
    assert STAYS not in beside
