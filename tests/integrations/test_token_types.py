"""Segments of pairs reach the model; columns that would place tokens otherwise are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

from chronomask.errors import UsageError
from chronomask.integrations.lightning import TimeVariantMasking
from chronomask.integrations.step import StepMasking
from chronomask.integrations.workers import MaskedLoader
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator
from tests.support.recording_trainer import trainer_of, without_dropout

Row = dict[str, Any]
_NONE: Any = None


@pytest.fixture(scope="session")
def pairs(rows: list[Row]) -> list[Row]:
    """Rows of which the last five tokens are of a second segment."""
    ids = [row["input_ids"] for row in rows]
    return [{"input_ids": i, "token_type_ids": [0] * (len(i) - 5) + [1] * 5} for i in ids]


@pytest.fixture(scope="session")
def alike(rows: list[Row]) -> list[Row]:
    """Rows of one segment, as tokenizers of BERT give them."""
    ids = [row["input_ids"] for row in rows]
    return [{"input_ids": i, "token_type_ids": [0] * len(i)} for i in ids]


def given_to(model: nn.Module) -> list[dict[str, Any]]:
    """What the model is given from now on, forward by forward."""
    seen: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, __, kw: seen.append(dict(kw)), with_kwargs=True)
    return seen


class WithoutTypes(nn.Module):
    """A model that takes no token types."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("collator", [RowCollator, DataCollatorWithPadding])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_trainer_gives_the_model_both_segments(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Row], tmp_path: Path, collator: Any, keeps: bool
) -> None:
    model = without_dropout(tokenizer)
    seen = given_to(model)
    options: dict[str, Any] = {"max_steps": 1, "remove_unused_columns": not keeps}
    trainer = trainer_of(
        tokenizer, pairs, tmp_path, {"ratio": 0.3}, model,
        given={"data_collator": collator(tokenizer)}, **options,
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    for given in seen:
        types, mask = given["token_type_ids"], given["attention_mask"]
        assert types.dtype == torch.int64
        assert types.sum(1).tolist() == [5] * len(types)
        assert not types[mask == 0].any()
    assert len(seen) == 3


def test_a_model_that_takes_none_trains_on_pairs(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Row], tmp_path: Path
) -> None:
    for keeps in (True, False):
        model = WithoutTypes(without_dropout(tokenizer))
        trainer = trainer_of(
            tokenizer, pairs, tmp_path, {"ratio": 0.3}, model, max_steps=1,
            remove_unused_columns=not keeps,
        )  # fmt: skip
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


def test_segments_that_are_all_the_first_are_given_to_no_model(
    tokenizer: PreTrainedTokenizerFast, alike: list[Row], tmp_path: Path
) -> None:
    model = without_dropout(tokenizer)
    seen = given_to(model)
    trainer_of(tokenizer, alike, tmp_path, {"ratio": 0.3}, model, max_steps=1).train()
    assert [sorted(given) for given in seen] == [["attention_mask", "input_ids"]]
    masked = Masker.for_tokenizer(tokenizer, ratio=0.3)(alike[:4], progress=0.0)
    assert sorted(masked.inputs()) == ["attention_mask", "input_ids"]


def test_segments_reach_plain_loops_and_workers(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Row]
) -> None:
    masker, collate = Masker.for_tokenizer(tokenizer, ratio=0.3), RowCollator(tokenizer)
    numbered = [{**row, "row_id": k} for k, row in enumerate(pairs[:4])]
    batch = collate(numbered)
    expected = batch["token_type_ids"]
    assert expected.dtype == torch.int64
    assert expected.sum(1).tolist() == [5] * 4
    padded = tokenizer.pad(pairs[:4], return_tensors="pt")
    arrays = {name: column.numpy() for name, column in batch.items() if name != "row_id"}
    for given in (batch, padded, numbered, {**arrays, "row_id": batch["row_id"]}):
        assert torch.equal(masker(given, progress=0.0).inputs()["token_type_ids"], expected)
    rows = masker.rows_of(batch, 0.0)
    assert torch.equal(masker.mask_dense(rows, 0.0).inputs()["token_type_ids"], expected)
    host = rows.on_host()
    for part in (host.slice(1, 3), host.select(np.array([False, True, True, False]))):
        assert torch.equal(torch.as_tensor(part.token_type_ids), expected[1:3])
    masking = StepMasking({"ratio": 0.3}, tokenizer)
    model = without_dropout(tokenizer)
    seen = given_to(model)
    masking.attach(model)
    for micro in masking.begin_step([batch], 0.0, epoch=0):
        masking.loss(model, micro)
    assert torch.equal(seen[0]["token_type_ids"], expected)
    TimeVariantMasking({"ratio": 0.3}, tokenizer).on_test_batch_start(_NONE, _NONE, batch, 0)
    assert torch.equal(batch["token_type_ids"], expected)
    loader = MaskedLoader(
        pairs, masker, batch_size=4, num_steps=1, collate_fn=collate,
        num_workers=1, multiprocessing_context="fork",
    )  # fmt: skip
    assert next(iter(loader))["token_type_ids"].sum(1).tolist() == [5] * 4


@pytest.mark.parametrize("arm", ["arms/gpt-bert", {"late_masks": {"layer": 1}}])
def test_what_runs_the_model_refuses_a_second_segment(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Row], alike: list[Row], arm: Any
) -> None:
    masking = StepMasking(arm, tokenizer)
    masking.attach(without_dropout(tokenizer))
    with pytest.raises(UsageError, match=r"row 2 has token_type_ids .*leave the column out"):
        masking.begin_step([RowCollator(tokenizer)([{**pairs[0], "row_id": 2}])], 0.0, epoch=0)
    assert masking.begin_step([alike[:4]], 0.0, epoch=0)


def test_flattened_texts_are_refused(
    tokenizer: PreTrainedTokenizerFast, rows: list[Row], tmp_path: Path
) -> None:
    for collator in (
        DataCollatorWithFlattening(),
        DataCollatorWithFlattening(return_position_ids=False, return_seq_idx=True),
        DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True),
    ):
        trainer = trainer_of(
            tokenizer, rows, tmp_path, {"ratio": 0.3}, max_steps=1, given={"data_collator": collator},
        )  # fmt: skip
        with pytest.raises(UsageError, match=r"every text as a row of its own.*chronomask prepare"):
            trainer.train()


def test_positions_count_a_row_from_0_or_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker.for_tokenizer(tokenizer, ratio=0.3)
    ids = torch.tensor([[2, 20, 21, 22, 3], [2, 23, 24, 3, 0]])
    plain = masker({"input_ids": ids}, progress=0.0)
    mask = (ids != 0).long()
    counted = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 0]])
    restarted = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]])
    for positions in (torch.arange(5)[None], counted, counted.tolist()):
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        assert torch.equal(masker(given, progress=0.0).input_ids, plain.input_ids)
    with pytest.raises(UsageError, match="position_ids of row 1 has 0 at token 2"):
        masker({"input_ids": ids, "position_ids": restarted, "attention_mask": mask}, progress=0.0)
    features = [
        {"input_ids": row, "position_ids": at, "row_id": number}
        for row, at, number in zip(ids.tolist(), restarted.tolist(), (7, 8), strict=True)
    ]
    with pytest.raises(UsageError, match="position_ids of row 8 has 0 at token 2"):
        RowCollator(tokenizer)(features)
    bounds = {"input_ids": ids[:1], "cu_seq_lens_q": torch.tensor([0, 2, 5])}
    with pytest.raises(UsageError, match="cu_seq_lens_q says that 2 texts"):
        masker(bounds, progress=0.0)
    assert masker({**bounds, "cu_seq_lens_q": torch.tensor([0, 5])}, progress=0.0)
