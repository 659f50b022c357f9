"""Intrinsic losses: those of a run's own validation, those of a loop by hand, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.intrinsic import (
    MaskedLoss,
    MaskedLossTask,
    PseudoPerplexity,
    PseudoPerplexityTask,
)
from chronomask.masking.yardsticks import masker_of
from chronomask.model.open import open_tokenizer
from chronomask.runs.held_out import read_rows
from chronomask.study.statistics import metric_of
from chronomask.vocabulary import Vocabulary, vocabulary_size
from chronomask.yardsticks import YARDSTICKS
from tests.support.corpus import made_up_text
from tests.support.scored_by_hand import by_hand
from tests.support.tiny_models import save_tiny
from tests.support.tiny_run import tiny_run


def test_the_loss_is_that_of_the_runs_validation(tmp_path: Path, tiny_data: PreparedData) -> None:
    run = tiny_run(tmp_path, tiny_data)
    logged = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])
    subject = find_subject(str(run))
    task = MaskedLossTask(MaskedLoss.parse({"rows": 8, "batch_rows": 3}))
    task.check(subject, tiny_data.path)
    found = task.run(subject, tiny_data.path, 0, False)
    assert found.step == logged["step"]
    assert found.metrics["loss"] == pytest.approx(logged["loss"], rel=1e-5)
    assert found.metrics["accuracy"] == pytest.approx(logged["accuracy"], rel=1e-5)
    yardsticks = {k: v for k, v in logged["yardstick_count"].items() if "/" not in k}
    assert found.num_examples == {"rows": 8, "tokens": logged["num_predicted"], **yardsticks}
    details = found.details.items()
    classes = {k.removeprefix("loss/"): v for k, v in details if k.startswith("loss/")}
    assert classes == pytest.approx(logged["class_loss"], rel=1e-5)
    # What intervals are computed from is of the rows in the order of validation, and gives the metric back.
    kept = read_rows(run / "validation-rows.npz", logged["step"])
    assert kept is not None
    assert found.examples["weight"].tolist() == kept["tokens-15"][1].tolist()
    losses = found.examples["loss"] * found.examples["weight"]
    assert losses == pytest.approx(kept["tokens-15"][0], rel=1e-4)
    assert metric_of("loss", found.examples) == pytest.approx(found.metrics["loss"])
    assert metric_of("accuracy", found.examples) == pytest.approx(found.metrics["accuracy"])


def test_a_run_is_measured_with_the_attention_it_was_trained_with(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    run = tiny_run(tmp_path, tiny_data, attention="row")
    logged = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])
    subject = find_subject(str(run))
    task = MaskedLossTask(MaskedLoss.parse({"rows": 8}))
    found = task.run(subject, tiny_data.path, 0, False)
    assert found.metrics["loss"] == pytest.approx(logged["loss"], rel=1e-5)
    assert found.details["attention_is_row"] == 1.0
    assert task.differing_settings(found) == []  # as the recipe of runs with another attention is
    apart = MaskedLossTask(MaskedLoss.parse({"rows": 8, "attention": "documents"}))
    assert apart.differing_settings(found) == ["attention"]
    other = apart.run(subject, tiny_data.path, 0, False)
    assert other.metrics["loss"] != found.metrics["loss"]
    assert other.details["attention_is_row"] == 0.0
    assert task.differing_settings(other) == ["attention"]
    shutil.copytree(subject.path, tmp_path / "alone")
    of_no_run = task.run(find_subject(str(tmp_path / "alone")), tiny_data.path, 0, False)
    assert of_no_run.metrics == other.metrics


def test_other_tokenizers_and_data_without_held_out_rows_are_refused(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    tokenizer = save_tiny(tmp_path / "model", tiny_data.tokenizer_path)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="another tokenizer"):
        MaskedLossTask().check(find_subject(str(tmp_path / "model")), tiny_data.path)
    few = {"vocab_size": vocabulary_size(open_tokenizer(tiny_data.tokenizer_path)) - 1}
    save_tiny(tmp_path / "few", tiny_data.tokenizer_path, **few)
    with pytest.raises(UsageError, match="resize_token_embeddings"):
        MaskedLossTask().check(find_subject(str(tmp_path / "few")), tiny_data.path)
    save_tiny(tmp_path / "short", tiny_data.tokenizer_path, max_position_embeddings=16)
    with pytest.raises(UsageError, match="positions for 16 tokens"):
        MaskedLossTask().check(find_subject(str(tmp_path / "short")), tiny_data.path)


def test_pseudo_perplexity_by_hand(tmp_path: Path, tiny_tokenizer: Path) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    text = tmp_path / "text.txt"
    texts = [" ".join(each.split()[:6]) for each in made_up_text(3)]
    texts[0] += " é"  # one character of two bytes
    text.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    subject = find_subject(str(tmp_path / "model"))
    task = PseudoPerplexityTask()
    task.check(subject, tmp_path)
    found = task.run(subject, tmp_path, 0, False)
    total = -sum(by_hand(tmp_path / "model", each, "original") for each in texts)
    tokens = sum(len(subject.tokenizer(each)["input_ids"]) - 2 for each in texts)
    assert found.metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert found.metrics["pseudo_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    characters = sum(map(len, texts))
    assert found.metrics["nats_per_character"] == pytest.approx(total / characters, rel=1e-5)
    assert found.num_examples == {"lines": 3, "tokens": tokens}
    assert metric_of("loss", found.examples) == pytest.approx(found.metrics["loss"])


def test_a_line_longer_than_the_model_is_scored_in_parts(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer, max_position_embeddings=16)
    text = tmp_path / "long.txt"
    text.write_text(" ".join(made_up_text(4)))
    subject = find_subject(str(tmp_path / "model"))
    found = PseudoPerplexityTask(PseudoPerplexity.parse({"text": str(text)})).run(
        subject, tmp_path, 0, False
    )
    tokens = len(subject.tokenizer.tokenize(text.read_text()))
    assert found.num_examples == {"lines": 1, "tokens": tokens}
    assert found.left_out == {"lines cut into parts of 16 tokens": 1}
    assert np.isfinite(found.metrics["loss"])


def test_what_is_predicted_as_unknown_is_told(tmp_path: Path, tiny_tokenizer: Path) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    (tmp_path / "text.txt").write_text("䷀ a ䷁\na a\n䷂\n")
    subject = find_subject(str(tmp_path / "model"))
    unknown = subject.tokenizer("䷀ a ䷁", add_special_tokens=False)["input_ids"]
    assert unknown.count(subject.tokenizer.unk_token_id) == 2
    found = PseudoPerplexityTask().run(subject, tmp_path, 0, False)
    assert found.left_out == {"tokens that the vocabulary lacks, predicted as unknown": 3}


def test_a_text_without_a_token_is_refused_beforehand(tmp_path: Path, tiny_tokenizer: Path) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    (tmp_path / "text.txt").write_text("\u200b\n", encoding="utf-8")
    subject = find_subject(str(tmp_path / "model"))
    assert not subject.tokenizer.tokenize("\u200b")
    with pytest.raises(DataError, match=r"has no token that .* could predict"):
        PseudoPerplexityTask().check(subject, tmp_path)


def test_texts_must_be_there(tmp_path: Path) -> None:
    task = PseudoPerplexityTask()
    with pytest.raises(UsageError, match="0 text files"):
        task.data_sha256(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text"):
        task._lines(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="is UTF-16, by its byte order mark"):
        task._lines(tmp_path)
    (tmp_path / "b.txt").touch()
    with pytest.raises(UsageError, match="2 text files"):
        task.data_sha256(tmp_path)
    gone = PseudoPerplexityTask(PseudoPerplexity.parse({"text": "gone.txt"}))
    with pytest.raises(UsageError, match=r"gone\.txt does not exist"):
        gone.data_sha256(tmp_path)


def test_the_yardsticks_are_those_of_the_runs_validation(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    run = tiny_run(tmp_path, tiny_data)
    logged = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])
    subject = find_subject(str(run))
    task = MaskedLossTask(MaskedLoss.parse({"rows": 8}))
    found = task.run(subject, tiny_data.path, 0, False)
    assert found.metrics["mean_loss"] == pytest.approx(logged["mean_loss"], rel=1e-5)
    for name, loss in logged["yardstick_loss"].items():
        assert found.details[f"yardstick_loss/{name}"] == pytest.approx(loss, rel=1e-5)
    for name in ("words-5", "words-15", "words-30", "words-50", "single"):
        assert found.num_examples[name] == logged["yardstick_count"][name] > 0
    rows = tiny_data.split("held_out").read(np.arange(3))  # a third of eight
    vocabulary = Vocabulary.from_tokenizer(open_tokenizer(tiny_data.tokenizer_path))
    masked = masker_of(YARDSTICKS[1], vocabulary)(rows)
    hidden = np.zeros(rows.word_id.size, bool)
    hidden[masked.positions] = True
    before = np.roll(rows.word_id.ravel(), 1)
    begins = hidden & (rows.word_id.ravel() != before)
    expected = found.metrics["loss_words-15"] * hidden.sum() / begins.sum()
    assert found.metrics["loss_per_word"] == pytest.approx(expected)


def test_a_task_whose_settings_name_its_data_needs_no_folder_of_files(
    tmp_path: Path, tiny_tokenizer: Path, tiny_data: PreparedData
) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(made_up_text(2)))

    def measure(tasks: str, *settings: str) -> Any:
        words = [
            "evaluate",
            str(tmp_path / "model"),
            "--tasks",
            tasks,
            "--out",
            str(tmp_path / "out"),
        ]
        changes = [word for setting in settings for word in ("--set", setting)]
        return CliRunner().invoke(app, [*words, *changes])

    settings = [f"pseudo_perplexity.text={text}", f"mlm.prepared={tiny_data.path}", "mlm.rows=8"]
    assert measure("pseudo_perplexity", settings[0]).exit_code == 0
    assert measure("pseudo_perplexity,mlm", *settings).exit_code == 0
    refused = measure("pseudo_perplexity,cola", settings[0])
    assert "name the folder of the tasks' files: --task-data" in str(refused.exception)
