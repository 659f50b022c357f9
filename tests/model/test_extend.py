"""New rows of a vocabulary: the mean of their pieces, in every architecture, tied or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chronomask.model.extend import grow_vocabulary
from chronomask.model.head import HEADS
from chronomask.model.open import open_model
from tests.support.tiny_models import small


def embedding_and_head(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


# DeBERTa's own, in transformers 5.17.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model_type", [*sorted(HEADS), "deberta-v2", "roformer"])
def test_a_new_tokens_logit_is_the_mean_of_its_pieces(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, "row")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    rows = model.config.vocab_size
    pieces = {rows: [7, 9], rows + 2: [11, 12, 13]}
    bigger = grow_vocabulary(model, pieces, rows + 3).eval()
    assert bigger.config.vocab_size >= rows + 3
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, bigger(input_ids=ids).logits
    torch.testing.assert_close(after[..., :rows], before)
    for number, own in pieces.items():
        torch.testing.assert_close(after[..., number], before[..., own].mean(-1))
        embedding, _ = embedding_and_head(bigger)
        torch.testing.assert_close(embedding[number], embedding[own].mean(0), rtol=0, atol=0)
    (embedding, head), (grown, grown_head) = map(embedding_and_head, (model, bigger))
    assert (head is embedding) == (grown_head is grown)


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_untied_heads_have_rows_of_their_own(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, "row")
    model.config.tie_word_embeddings = False
    model = type(model)(model.config).eval()
    rows = model.config.vocab_size
    bigger = grow_vocabulary(model, {rows: [7, 9]}, rows + 1).eval()
    embedding, head = embedding_and_head(bigger)
    assert not torch.equal(embedding[rows], head[rows])
    torch.testing.assert_close(head[rows], head[[7, 9]].mean(0), rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_weights_that_are_two_stay_two_whatever_their_config_says(
    model_type: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A checkpoint with two matrices and a config that ties is opened untied, and trains so."""
    model = small(model_type, tokenizer, "row")
    model.config.tie_word_embeddings = False
    type(model)(model.config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    opened = open_model(tmp_path).eval()
    rows = opened.config.vocab_size
    bigger = grow_vocabulary(opened, {rows: [7, 9]}, rows + 1).eval()
    before, after = embedding_and_head(opened), embedding_and_head(bigger)
    assert not torch.equal(*before)
    assert all(torch.equal(new[:rows], old) for old, new in zip(before, after, strict=True))
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        torch.testing.assert_close(bigger(ids).logits[..., :rows], opened(ids).logits)
    bigger.save_pretrained(tmp_path / "bigger")
    again = embedding_and_head(open_model(tmp_path / "bigger"))
    assert all(map(torch.equal, again, after))


def test_rows_that_pad_the_vocabulary_are_used_first(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small("bert", tokenizer, "row")
    rows = model.config.vocab_size
    assert rows % 64 == 0
    padded = grow_vocabulary(model, {}, rows + 1)
    assert padded.config.vocab_size == rows + 64
    filled = grow_vocabulary(padded, {rows: [7, 9]}, rows + 1)
    assert filled.config.vocab_size == rows + 64
    embedding, _ = embedding_and_head(filled)
    torch.testing.assert_close(embedding[rows], embedding[[7, 9]].mean(0), rtol=0, atol=0)
