"""Models come from names and sizes or from folders; what cannot be is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import DataError, UsageError
from chronomask.model.build import build_model
from chronomask.model.config import FromCheckpoint, FromConfig
from chronomask.model.export import export
from chronomask.model.extend import grow_vocabulary
from chronomask.model.open import open_model, open_tokenizer
from tests.support.tiny_models import sizes, small


def build(
    tokenizer: PreTrainedTokenizerBase, model_type: str = "bert", seed: int = 0, **overrides: object
) -> PreTrainedModel:
    config = FromConfig.parse({"model_type": model_type, "overrides": sizes("bert") | overrides})
    return build_model(config, tokenizer, row_length=64, seed=seed, attention="documents")


def test_initial_weights_are_a_function_of_the_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = build(tokenizer).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())  # nothing drawn from the global stream
    torch.manual_seed(6)
    again, other = build(tokenizer).state_dict(), build(tokenizer, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
def test_vocabulary_comes_from_the_tokenizer(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = build(tokenizer, model_type).config
    assert config.vocab_size == len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    if model_type == "modernbert":
        assert (config.cls_token_id, config.bos_token_id) == (tokenizer.cls_token_id,) * 2
        assert (config.sep_token_id, config.eos_token_id) == (tokenizer.sep_token_id,) * 2


def test_unknown_names_are_refused_with_the_nearest(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="'modernbret'; did you mean 'modernbert'"):
        build(tokenizer, "modernbret")
    with pytest.raises(UsageError, match=r"'overrides\.hiden_size'; did you mean 'hidden_size'"):
        build(tokenizer, hiden_size=64)
    with pytest.raises(UsageError, match=r"overrides hidden_size=wide make no 'bert'"):
        build(tokenizer, hidden_size="wide")


def test_a_field_may_be_false_or_what_the_architecture_itself_has(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert build(tokenizer, tie_word_embeddings=False).config.tie_word_embeddings is False
    deberta = FromConfig(model_type="deberta-v2", overrides={**sizes("bert"), "type_vocab_size": 0})
    build_model(deberta, tokenizer, row_length=64, seed=0, attention="row")
    with pytest.raises(UsageError, match=r"type_vocab_size is 0; it must be at least 1"):
        build(tokenizer, type_vocab_size=0)
    with pytest.raises(UsageError, match=r"num_hidden_layers is 9999999; it must be at most 2,048"):
        build(tokenizer, num_hidden_layers=9_999_999)


def test_a_whole_number_may_stand_for_a_fraction(tokenizer: PreTrainedTokenizerBase) -> None:
    found = build(tokenizer, layer_norm_eps=1, hidden_dropout_prob=0).config
    assert isinstance(found.layer_norm_eps, float)
    assert (found.layer_norm_eps, found.hidden_dropout_prob) == (1.0, 0)
    with pytest.raises(UsageError, match="layer_norm_eps=True make no 'bert'"):
        build(tokenizer, layer_norm_eps=True)


def test_no_cuda_device_is_asked_for_its_random_state(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would make a context on each device of a machine, in each of its processes."""
    expected = build(tokenizer).state_dict()

    def ask(*_: object) -> None:
        raise AssertionError("a CUDA device was asked")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_rng_state", ask)
    model = build(tokenizer)
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
    known = model.config.vocab_size
    assert grow_vocabulary(model, {known: [5, 6]}, known + 1).config.vocab_size > known


def test_too_small_a_model_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match=r"vocab_size is 100, .* leave it out"):
        build(tokenizer, vocab_size=100)
    with pytest.raises(UsageError, match=r"32 positions, rows of 64 tokens need 64.*=64"):
        build(tokenizer, max_position_embeddings=32)
    needed = 64 + tokenizer.pad_token_id + 1
    with pytest.raises(UsageError, match=f"need {needed}"):
        build(tokenizer, "roberta", max_position_embeddings=needed - 1)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_drawn(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(
        UsageError, match=r"parameters, which take .* GB for each process: choose a"
    ):
        build(tokenizer, hidden_size=1 << 20, intermediate_size=1 << 22)


def test_exported_folder_opens_in_transformers_and_here(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small("modernbert", tokenizer, "documents")
    export(model, tokenizer, tmp_path / "m", "# card\n")
    assert (tmp_path / "m" / "README.md").read_text() == "# card\n"
    assert not list((tmp_path / "m").glob("*.bin"))
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path / "m", local_files_only=True)
    continued = build_model(
        FromCheckpoint(path=str(tmp_path / "m")), tokenizer, row_length=64, seed=3, attention="row"
    )
    for other in (opened, continued):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {tensor.data_ptr() % 64 for tensor in continued.state_dict().values()} == {0}
    assert open_tokenizer(tmp_path / "m").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_exported_tokenizer_knows_the_longest_text_of_its_model(
    model_type: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small(model_type, tokenizer, "row")
    export(model, tokenizer, tmp_path / "m", "")
    length = open_tokenizer(tmp_path / "m").model_max_length
    ids = torch.full((1, length), 7)
    with torch.no_grad():
        model(input_ids=ids)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.cat([ids, ids[:, :1]], 1))


def test_checkpoint_of_another_vocabulary_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    export(small("bert", tokenizer, "row"), tokenizer, folder, "")
    other = open_tokenizer(folder)
    other.add_tokens(["brandnewword"])
    with pytest.raises(UsageError, match=r"not the data's.*prepare the data with the tokenizer"):
        build_model(FromCheckpoint(path=str(folder)), other, row_length=64, seed=0, attention="row")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer, .*; put the tokenizer"):
        build_model(
            FromCheckpoint(path=str(folder)), tokenizer, row_length=64, seed=0, attention="row"
        )


def test_folders_that_hold_no_model_are_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match=r"no \.safetensors weights"):
        open_model(tmp_path)
    with pytest.raises(
        DataError, match=r"as a tokenizer|has no tokenizer"
    ):  # by transformers' version
        open_tokenizer(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        open_tokenizer(tmp_path / "nothing")
