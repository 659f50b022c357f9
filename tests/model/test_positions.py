"""Rows longer than a checkpoint's positions: more of those it has, or advice that can be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from chronomask.errors import UsageError
from chronomask.model.build import build_model, skeleton
from chronomask.model.config import FromCheckpoint
from chronomask.model.export import export
from tests.support.tiny_models import save_tiny

LONG = 100


def longer(folder: Path, tokenizer: PreTrainedTokenizerBase, longer_rows: bool = True) -> Any:
    config = FromCheckpoint(path=str(folder), longer_rows=longer_rows)
    return build_model(config, tokenizer, row_length=LONG, seed=0, attention="documents").eval()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "albert"])
def test_learned_positions_are_tiled(model_type: str, tmp_path: Path, tiny_tokenizer: Path) -> None:
    positions = {"max_position_embeddings": 42}
    tokenizer = save_tiny(tmp_path / "m", tiny_tokenizer, model_type, **positions)
    before: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "m").eval()
    old = before.base_model.embeddings.position_embeddings.weight
    first = tokenizer.pad_token_id + 1 if model_type == "roberta" else 0
    model = longer(tmp_path / "m", tokenizer)
    new = model.base_model.embeddings.position_embeddings.weight
    known = 42 - first
    assert new.shape[0] == model.config.max_position_embeddings == LONG + first
    assert torch.equal(new[:42], old)
    assert torch.equal(new[first + known : first + 2 * known], old[first:])
    ids = torch.randint(5, len(tokenizer), (1, 30))
    with torch.no_grad():  # what it could do before, it does as before
        torch.testing.assert_close(model(ids).logits, before(ids).logits, rtol=1e-5, atol=1e-5)
        assert model(torch.randint(5, len(tokenizer), (1, LONG))).logits.isfinite().all()
    export(model, tokenizer, tmp_path / "out", "")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert again.config.max_position_embeddings == LONG + first


def test_modernbert_positions_turn_slower(tmp_path: Path, tiny_tokenizer: Path) -> None:
    sizes: dict[str, Any] = {"max_position_embeddings": 50, "num_hidden_layers": 3}
    tokenizer = save_tiny(tmp_path / "m", tiny_tokenizer, "modernbert", **sizes)
    before: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "m")
    model = longer(tmp_path / "m", tokenizer)
    theta = {kind: how["rope_theta"] for kind, how in before.config.rope_parameters.items()}
    found = {kind: how["rope_theta"] for kind, how in model.config.rope_parameters.items()}
    assert found["sliding_attention"] == theta["sliding_attention"]
    assert found["full_attention"] == pytest.approx(theta["full_attention"] * 2 ** (16 / 14))
    slow = model.base_model.rotary_emb.full_attention_inv_freq
    fast = before.base_model.rotary_emb.full_attention_inv_freq
    assert slow[0] == fast[0] == 1  # the fastest turn as before, the slowest at half its speed
    assert slow[-1].item() == pytest.approx(fast[-1].item() / 2, rel=1e-5)
    export(model, tokenizer, tmp_path / "out", "")
    again: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.base_model.rotary_emb.full_attention_inv_freq, slow)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
def test_advice_can_be_followed(tmp_path: Path, tiny_tokenizer: Path) -> None:
    tokenizer = save_tiny(tmp_path / "bert", tiny_tokenizer)
    with pytest.raises(
        UsageError, match=r"64 positions.*model\.longer_rows=true .*--row-length 64"
    ):
        longer(tmp_path / "bert", tokenizer, longer_rows=False)
    tokenizer = save_tiny(tmp_path / "deberta", tiny_tokenizer, "deberta-v2")
    config = FromCheckpoint(path=str(tmp_path / "deberta"), longer_rows=True)
    with pytest.raises(UsageError, match=r"'deberta-v2' cannot be given more: .*--row-length 64"):
        skeleton(config, tokenizer, row_length=LONG, attention="row")
    fits = skeleton(config, tokenizer, row_length=64, attention="row")
    assert fits.config.max_position_embeddings == 64
