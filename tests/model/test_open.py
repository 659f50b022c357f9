"""What a model folder holds is opened strictly, and none of its Python is ever run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    BertForPreTraining,
    ModernBertConfig,
    PreTrainedTokenizerBase,
)

from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.model.build import build_model, skeleton
from chronomask.model.config import FromCheckpoint
from chronomask.model.export import export
from chronomask.model.open import MissingHead, open_config, open_model, open_tokenizer
from chronomask.model.sizes import fault_of_size
from tests.support.tiny_models import save_tiny, small

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    """A tiny BERT with its head and tokenizer."""
    save_tiny(tmp_path / "model", tiny_tokenizer)
    return tmp_path / "model"


def change_weights(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    """Store what ``change`` makes of the weights; gives those that were there."""
    before = load_file(folder / WEIGHTS)
    save_file(change(before), folder / WEIGHTS, metadata={"format": "pt"})
    return before


def change_config(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_taken_off_and_told(
    folder: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = change_weights(folder, lambda w: {prefix + name: value for name, value in w.items()})
    state = open_model(folder).state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert "taken out of the names of the weights" in caplog.text


def test_a_compiled_part_is_known_by_its_name(folder: Path) -> None:
    before = change_weights(
        folder, lambda w: {k.replace("bert.encoder.", "bert._orig_mod.encoder."): w[k] for k in w}
    )
    state = open_model(folder).state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_a_folder_without_a_head_is_refused_unless_a_new_one_is_asked_for(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    folder = tmp_path / "encoder"
    tokenizer = save_tiny(folder, tiny_tokenizer, head=False)
    with pytest.raises(MissingHead, match=r"no masked-language-model head \(cls\.predictions"):
        open_model(folder)
    choice = FromCheckpoint(path=str(folder))
    with pytest.raises(UsageError, match=r"draw a new one with model\.new_head=true"):
        build_model(choice, tokenizer, row_length=32, seed=0, attention="documents")
    again = choice.replace(["new_head=true"])
    made = [
        build_model(again, tokenizer, row_length=32, seed=seed, attention="row").state_dict()
        for seed in (0, 0, 1)
    ]
    key = "cls.predictions.transform.dense.weight"
    assert torch.equal(made[0][key], made[1][key])
    assert not torch.equal(made[0][key], made[2][key])
    stored = load_file(folder / WEIGHTS)
    assert all(
        torch.equal(made[2][f"bert.{name}"], stored[name])
        for name in stored
        if "pooler" not in name
    )


def test_heads_of_other_tasks_may_be_left_over_and_new_ones_be_drawn(
    folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = BertForPreTraining(open_config(folder))  # BERT as it was published: two heads, a pooler
    whole.save_pretrained(tmp_path / "published")
    opened = open_model(tmp_path / "published").state_dict()
    assert torch.equal(opened["cls.predictions.bias"], whole.state_dict()["cls.predictions.bias"])
    assert open_model(folder, "AutoModel", new_head=True).config.model_type == "bert"  # a pooler
    with pytest.raises(MissingHead):
        open_model(folder, "AutoModelForSequenceClassification", num_labels=3)
    classifier = open_model(
        folder, "AutoModelForSequenceClassification", new_head=True, num_labels=3
    )
    assert classifier.state_dict()["classifier.weight"].shape[0] == 3
    classifier.save_pretrained(tmp_path / "three")  # a head of another size is replaced as well
    other = open_model(
        tmp_path / "three", "AutoModelForSequenceClassification", new_head=True, num_labels=2
    )
    assert other.state_dict()["classifier.weight"].shape[0] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"the weights lack bert\.encoder\.layer\.2\.\S+, .* more"),
        (
            {"num_hidden_layers": 1},
            r"hold bert\.encoder\.layer\.1\.\S+, .*config\.json knows nothing",
        ),
        (
            {"max_position_embeddings": 48},
            r"position_embeddings\.weight' has shape \(64, 32\).*\(48, 32\)",
        ),
        ({"vocab_size": 99}, r"weight '\S+' has shape .* config\.json makes it \(99"),
        ({"model_type": "bart-of-mine"}, r"'bart-of-mine', which transformers \S+ does not have"),
        (
            {"model_type": "llama"},
            "is of type 'llama', of which transformers has no model for MaskedLM",
        ),
        ({"hidden_size": "wide"}, "hidden_size|wide"),
    ],
)
def test_weights_and_config_of_two_models_are_refused_by_name(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder / "config.json", **changes)
    with pytest.raises(ChronomaskError, match=message) as refused:
        open_model(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [0, 5, 300, 9000])
def test_a_file_that_was_cut_short_is_named(folder: Path, length: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:length])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged or was cut short"):
        open_model(folder)


def test_a_missing_part_of_the_weights_is_named(folder: Path) -> None:
    model = open_model(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    lost = sorted(folder.glob("*.safetensors"))[1]
    assert open_model(folder).num_parameters() == model.num_parameters()
    lost.unlink()
    with pytest.raises(DataError, match=f"{lost.name} is missing"):
        open_model(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_weights_that_are_no_fractions_are_refused(folder: Path, kind: torch.dtype) -> None:
    name = "bert.encoder.layer.0.attention.self.query.weight"
    change_weights(folder, lambda w: w | {name: (w[name] * 50).to(kind)})
    with pytest.raises(
        DataError, match=rf"'{name}' is stored as \w+, as of a quantised model: save it"
    ):
        open_model(folder)


def test_numbers_of_positions_among_the_weights_may_be_whole(folder: Path) -> None:
    """Earlier versions of transformers stored them."""
    positions = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    change_weights(folder, lambda w: {k: v.half() for k, v in w.items()} | positions)
    assert open_model(folder).dtype == torch.float32


def test_names_with_a_prefix_that_is_no_wrappers_are_told(folder: Path) -> None:
    change_weights(folder, lambda w: {f"model.{name}": value for name, value in w.items()})
    with pytest.raises(
        DataError, match=r"lack bert\.embeddings.* and \d+ more; it has model\.bert\.embeddings"
    ) as refused:
        open_model(folder)
    assert "cls" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", -2, "it must be at least 1"),
        ("hidden_size", 0, "it must be at least 1"),
        ("num_hidden_layers", 10_000_000, "it must be at most 2,048"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_one_is_made(
    folder: Path, key: str, value: int, message: str
) -> None:
    change_config(folder / "config.json", **{key: value})
    with pytest.raises(DataError, match=rf"config\.json: {key} is {value}; {message}"):
        open_config(folder)


def test_a_config_whose_defaults_make_none_is_refused_like_another(folder: Path) -> None:
    change_config(folder / "config.json", model_type="nougat")
    with pytest.raises(DataError, match=r"config\.json does not make a 'nougat'"):
        open_config(folder)


def test_attention_may_be_global_in_the_first_layer_alone() -> None:
    assert fault_of_size("global_attn_every_n_layers", 9999, ModernBertConfig()) is None


def test_a_size_that_is_no_whole_number_is_named(folder: Path) -> None:
    change_config(folder / "config.json", hidden_size=32.0)
    with pytest.raises(DataError, match=r"config\.json does not make a 'bert'.*'hidden_size'"):
        open_config(folder)


def test_a_size_of_0_may_be_what_the_architecture_itself_has(folder: Path) -> None:
    fields = {"model_type": "deberta-v2", "type_vocab_size": 0, "encoder_no_repeat_ngram_size": 0}
    change_config(folder / "config.json", **fields)
    assert open_config(folder).type_vocab_size == 0


def test_sizes_beyond_the_memory_are_refused_before_a_model_is_made(folder: Path) -> None:
    change_config(folder / "config.json", vocab_size=10**12)
    with pytest.raises(UsageError, match=r"config\.json describes has .* choose a smaller model"):
        open_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '"bert"'])
def test_a_damaged_config_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json"):
        open_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        open_model(folder)


def bring_code(folder: Path, trace: Path) -> None:
    """Let config and tokenizer of a folder name Python that writes a file when it is imported."""
    (folder / "own.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class Own(BertForMaskedLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    code = dict.fromkeys(("AutoModel", "AutoModelForMaskedLM"), "own.Own")
    change_config(folder / "config.json", auto_map=code | {"AutoConfig": "own.OwnConfig"})
    change_config(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
        tokenizer_class="OwnTokenizer",
    )


@pytest.mark.parametrize("model_type", ["own", "bert"])
def test_code_in_a_folder_is_never_run_nor_advised(
    folder: Path,
    tmp_path: Path,
    tiny_tokenizer: Path,
    model_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even where somebody would answer 'yes' to the question that transformers asks."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    trace = tmp_path / "it-ran"
    bring_code(folder, trace)
    change_config(folder / "config.json", model_type=model_type)
    tokenizer = open_tokenizer(tiny_tokenizer)
    choice = FromCheckpoint(path=str(folder))

    refusals = []
    for open_it in (
        lambda: open_config(folder),
        lambda: open_tokenizer(folder),
        lambda: open_model(folder),
        lambda: open_model(folder, "AutoModel", new_head=True),
        lambda: skeleton(choice, None, row_length=32, attention="documents"),
        lambda: build_model(choice, tokenizer, row_length=32, seed=0, attention="documents"),
    ):
        try:
            open_it()
        except ChronomaskError as error:
            refusals.append(str(error))
    assert not trace.exists()
    assert len(refusals) == (6 if model_type == "own" else 0)
    assert all("never run" in text and "trust" not in text for text in refusals)


def test_what_is_exported_names_no_code(folder: Path, tmp_path: Path) -> None:
    bring_code(folder, tmp_path / "it-ran")
    change_config(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    export(open_model(folder), open_tokenizer(folder), tmp_path / "out", "")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text())
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True)


@pytest.mark.parametrize("model_type", ["albert", "distilbert", "electra", "modernbert", "roberta"])
def test_every_weight_of_an_exported_model_is_asked_for(
    tiny_tokenizer: Path, tmp_path: Path, model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer: PreTrainedTokenizerBase = open_tokenizer(tiny_tokenizer)
    export(small(model_type, tokenizer, "documents"), tokenizer, tmp_path / "m", "")
    with caplog.at_level(logging.INFO):
        open_model(tmp_path / "m")
    assert not caplog.records


@pytest.mark.parametrize(
    "table",
    [
        {"a": "../outside/model.safetensors"},
        {"a": "/outside/model.safetensors"},
        {"a": "model.bin"},
        {"a": None},
        {"a": ["model.safetensors"]},
        "model.safetensors",
        None,
    ],
)
def test_weights_are_read_from_files_of_the_folder_alone(folder: Path, table: Any) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / WEIGHTS).rename(outside / WEIGHTS)
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(DataError, match=r"in which \.safetensors files beside it .*weight_map"):
        open_model(folder)
