"""A packed document is computed as if it were alone; ModernBERT's windows stay inside documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import UsageError
from chronomask.model.attention import documents_attention
from chronomask.model.config import AttentionScope
from chronomask.model.documents import Documents, backbone_inputs, position_offset
from chronomask.model.head import logits_at
from chronomask.types import Rows
from tests.support.tiny_models import SEPARATING, rows_of, small

LENGTH = 64


def all_logits(model: PreTrainedModel, rows: Rows, pad: int) -> torch.Tensor:
    inputs = backbone_inputs(rows, "documents", pad, position_offset(model), model.device)
    with torch.no_grad():
        ids = torch.from_numpy(rows.input_ids).to(model.device)
        places = torch.arange(ids.numel(), device=model.device)
        return logits_at(model, ids, places, inputs).float().cpu()


@pytest.mark.parametrize(
    ("device", "dtype", "error"),
    [
        ("cpu", torch.float32, 1e-5),
        pytest.param("cuda", torch.float32, 1e-5, marks=pytest.mark.gpu),  # masks
        pytest.param("cuda", torch.bfloat16, 2e-2, marks=pytest.mark.gpu),  # varlen_attn
    ],
)
@pytest.mark.parametrize("model_type", SEPARATING)
def test_packed_documents_equal_separate_ones(
    model_type: str,
    device: str,
    dtype: torch.dtype,
    error: float,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = small(model_type, tokenizer, "documents").to(device, dtype)  # pyright: ignore
    pad = tokenizer.pad_token_id
    rng = np.random.default_rng(0)
    ids = rng.integers(5, len(tokenizer), (2, LENGTH))
    ids[1, 50:] = pad
    bounds = [0, 20, 21, LENGTH, LENGTH + 30, 2 * LENGTH]
    packed = all_logits(model, rows_of(ids, bounds), pad)

    flat = ids.ravel()
    for begin, end in ((0, 20), (20, 21), (21, 64), (64, 94), (94, 114)):
        alone = rows_of(flat[None, begin:end].copy(), [0, end - begin])
        expected = all_logits(model, alone, pad)
        largest = float(expected.abs().max())
        most = error if dtype == torch.float32 else error * largest
        torch.testing.assert_close(packed[begin:end], expected, rtol=0, atol=most)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("model_type", SEPARATING)
def test_one_document_is_computed_as_transformers_does(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Ours with a single document against the model's own attention: windows and positions agree."""
    pad = tokenizer.pad_token_id
    ids = np.random.default_rng(1).integers(5, len(tokenizer), (2, LENGTH))
    ours = small(model_type, tokenizer, "documents")
    theirs = small(model_type, tokenizer, "row")
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids)).logits.flatten(0, 1)
    packed = all_logits(ours, rows_of(ids, [0, LENGTH, 2 * LENGTH]), pad)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_plain_call_is_what_transformers_computes(
    model_type: str, padded: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(tokenizer), (2, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids}
    with torch.no_grad():
        ours = small(model_type, tokenizer, "documents")(**inputs).logits
        theirs = small(model_type, tokenizer, "row")(**inputs).logits
    real = mask.bool() if padded else torch.ones_like(mask).bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-5)


def test_another_document_changes_nothing_and_one_own_token_does(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = small("modernbert", tokenizer, "documents")
    pad = tokenizer.pad_token_id
    ids = np.random.default_rng(2).integers(5, len(tokenizer), (1, LENGTH))
    bounds = [0, 30, LENGTH]
    before = all_logits(model, rows_of(ids, bounds), pad)
    changed = ids.copy()
    changed[0, 30:] = 9
    after = all_logits(model, rows_of(changed, bounds), pad)
    assert torch.equal(before[:30], after[:30])
    changed = ids.copy()
    changed[0, 0] = 9
    after = all_logits(model, rows_of(changed, bounds), pad)
    assert not torch.equal(before[29], after[29])
    assert torch.equal(before[30:], after[30:])


def test_rows_of_one_document_need_no_mask() -> None:
    ids = np.full((2, 8), 7)
    whole = backbone_inputs(rows_of(ids, [0, 8, 16]), "documents", 0, 0, "cpu")["documents"]
    assert isinstance(whole, Documents)
    assert whole.mask(None, torch.float32) is None
    assert whole.mask(7, torch.float32) is None
    cut = backbone_inputs(rows_of(ids, [0, 3, 8, 16]), "documents", 0, 0, "cpu")["documents"]
    assert cut.mask(None, torch.float32) is cut.mask(None, torch.float32)


def test_window_mask_reaches_as_far_as_it_says() -> None:
    inputs = backbone_inputs(rows_of(np.full((1, 6), 7), [0, 4, 6]), "documents", 0, 0, "cpu")
    mask = inputs["documents"].mask(1, torch.float32)[0, 0]
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(mask == 0, torch.tensor(expected, dtype=torch.bool))


def test_positions_restart_and_padding_is_apart() -> None:
    ids = np.array([[7, 7, 7, 7, 7, 0, 0, 0]])
    inputs = backbone_inputs(rows_of(ids, [0, 2, 8]), "documents", 0, 2, "cpu")
    assert inputs["position_ids"].tolist() == [[2, 3, 2, 3, 4, 2, 3, 4]]
    assert inputs["documents"].number.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2]]
    assert inputs["documents"].cu_seqlens.tolist() == [0, 2, 5, 8]


def test_row_scope_hides_padding_alone() -> None:
    ids = np.array([[7, 7, 0, 0]])
    assert backbone_inputs(rows_of(ids[:, :2], [0, 1, 2]), "row", 0, 0, "cpu") == {}
    inputs = backbone_inputs(rows_of(ids, [0, 1, 4]), "row", 0, 0, "cpu")
    assert list(inputs) == ["documents"]
    assert inputs["documents"].number.tolist() == [[0, 0, 1, 1]]
    inputs = backbone_inputs(rows_of(ids, [0, 1, 4]), "row", 0, 0, "cpu", ours=False)
    assert list(inputs) == ["attention_mask"]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("scope", ["row", "documents"])
def test_a_compiled_model_is_given_as_many_bounds_whatever_a_batch_holds(
    scope: AttentionScope,
) -> None:
    """Rows are documents to it, so that kernels for documents take them, and no mask is made."""
    whole, padded = np.full((2, 4), 7), np.array([[7, 7, 7, 7], [7, 7, 0, 0]])
    for ids, bounds in ((whole, [0, 4, 8]), (padded, [0, 4, 8]), (whole, [0, 1, 2, 4, 5, 8])):
        inputs = backbone_inputs(rows_of(ids, bounds), scope, 0, 0, "cpu", room=5)
        assert "attention_mask" not in inputs
        assert inputs["documents"].cu_seqlens.shape == (8,)
        assert inputs["documents"].separate
    inputs = backbone_inputs(rows_of(whole, [0, 4, 8]), scope, 0, 0, "cpu", room=8)
    assert inputs["documents"].cu_seqlens.tolist() == [0, 4] + 14 * [8]


def test_dropout_on_the_host_has_the_right_mean_and_follows_torchs_seed() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 6, 4).unbind(0)
    value = torch.eye(6).expand(1, 2, 6, 6)  # the output is the attention weights themselves
    module = torch.nn.Identity()
    whole, _ = documents_attention(module, query, key, value, None)
    torch.manual_seed(1)
    first, _ = documents_attention(module, query, key, value, None, dropout=0.25)
    torch.manual_seed(1)
    again, _ = documents_attention(module, query, key, value, None, dropout=0.25)
    assert torch.equal(first, again)
    kept = first != 0
    torch.testing.assert_close(first[kept], whole[kept] / 0.75)
    torch.manual_seed(1)
    allowed = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    hidden, _ = documents_attention(module, query, key, value, allowed, dropout=0.25)
    assert not hidden.transpose(1, 2).triu(1).any()
    many = torch.stack(
        [documents_attention(module, query, key, value, None, dropout=0.25)[0] for _ in range(2000)]
    )
    assert (many != 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(many.mean(0), whole, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("model_type", ["roformer", "mobilebert"])
def test_architecture_that_cannot_separate_is_refused(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UsageError, match=rf"'{model_type}' .*set attention=row"):
        small(model_type, tokenizer, "documents")
