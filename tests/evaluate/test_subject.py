"""What can be evaluated, and what is refused before anything is."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import find_subject
from tests.support.official_model import make_checkpoint, make_tokenizer, save_model


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> Path:
    for step in (5, 40):
        make_checkpoint(tmp_path / "run", step, model_folder)
    return tmp_path / "run"


def test_a_model_folder_is_itself(model_folder: Path) -> None:
    subject = find_subject(str(model_folder))
    assert (subject.path, subject.step, subject.run) == (model_folder, None, None)
    own = hashlib.sha256((model_folder / "model.safetensors").read_bytes()).digest()
    assert subject.sha256 == hashlib.sha256(own).hexdigest()
    assert subject.max_length == 128
    model = subject.masked_lm()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_is_its_newest_checkpoint(run: Path) -> None:
    subject = find_subject(str(run))
    newest = run / "checkpoints" / "step-00000040"
    assert (subject.path, subject.step, subject.run) == (newest / "transformers", 40, run)
    for path in (newest, newest / "transformers"):
        again = find_subject(str(path))
        assert (again.path, again.step, again.run) == (newest / "transformers", 40, run)


def test_a_damaged_checkpoint_is_refused(run: Path) -> None:
    weights = run / "checkpoints" / "step-00000040" / "transformers" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"model.safetensors does not match its hash"):
        find_subject(str(run))
    assert find_subject(str(run / "checkpoints" / "step-00000005")).step == 5
    (run / "checkpoints" / "step-00000040" / "hashes.json").unlink()
    with pytest.raises(DataError, match=r"step-00000040 is not a whole checkpoint"):
        find_subject(str(run))


def test_what_is_no_model_is_refused(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(UsageError, match="does not exist: name a run folder"):
        find_subject(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"neither a run .*; name the folder of one"):
        find_subject(str(tmp_path))
    shutil.copytree(model_folder, tmp_path / "adapted" / "model")
    with pytest.raises(
        UsageError, match=r"adapted holds a model, and is none: name .*adapted/model"
    ):
        find_subject(str(tmp_path / "adapted"))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        find_subject(str(tmp_path / "empty"))
    (tmp_path / "begun").mkdir()  # as a run leaves it until its first checkpoint
    (tmp_path / "begun" / "config.yaml").write_text("steps: 9\n")
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        find_subject(str(tmp_path / "begun"))
    shutil.copytree(model_folder, tmp_path / "beside")
    (tmp_path / "beside" / "checkpoints").mkdir()
    assert find_subject(str(tmp_path / "beside")).path == tmp_path / "beside"
    shutil.copytree(model_folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no \.safetensors weights"):
        find_subject(str(tmp_path / "pickled"))
    with pytest.raises(UsageError, match="cannot be loaded from the hub"):
        find_subject("nobody/nothing")


def test_a_model_without_the_head_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "head less")
    make_tokenizer().save_pretrained(tmp_path / "head less")
    folder = re.escape(shlex.quote(str(tmp_path / "head less")))
    way = rf"prepare TEXT --out DATA --tokenizer {folder}; .* --model {folder} --data DATA --set model\.new"
    with pytest.raises(
        UsageError, match=rf"no masked-language-model head \(cls\.predictions.*{way}"
    ):
        find_subject(str(tmp_path / "head less")).masked_lm()
    values = json.loads((tmp_path / "head less" / "config.json").read_text())
    values["model_type"] = "clip"
    (tmp_path / "head less" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="of type 'clip', of which transformers has no model for"):
        find_subject(str(tmp_path / "head less")).check_head("AutoModelForQuestionAnswering")


def test_roberta_has_fewer_rooms_than_positions(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    subject = find_subject(str(tmp_path))
    assert subject.max_length == 64
    model = subject.masked_lm()
    assert model(torch.full((1, 64), 5)).logits.shape == (1, 64, len(tokenizer))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.full((1, 65), 5))


def test_a_token_without_weights_is_refused_where_a_text_has_it_and_the_way_out_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "model")
    tokenizer = make_tokenizer()
    known = len(tokenizer)
    monkeypatch.chdir(tmp_path)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)

    def measure(text: str, model: str = "model") -> None:
        subject = find_subject(model)
        given = torch.tensor([subject.tokenizer(text)["input_ids"]])
        subject.masked_lm()(input_ids=given)
        subject.open_as("AutoModel")(input_ids=given)

    measure("what is")
    with pytest.raises(UsageError, match=f"weights for {known} .* has {known + 1}: ") as refused:
        measure("what is zebra")
    with pytest.raises(UsageError, match="tokens were added"):
        find_subject("model").check_tokens()
    exec(str(refused.value).split("name it instead: ")[1], {"transformers": transformers})
    measure("what is zebra", "mended")
    find_subject("mended").check_tokens()
