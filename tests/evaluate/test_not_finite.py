"""Models that give NaN, infinity or numbers too large: no task has a score of them, and all say so."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chronomask.errors import RunError
from chronomask.evaluate import finetune
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.finetune import FineTuning
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.evaluate.tasks.glue import GlueTask
from chronomask.evaluate.tasks.retrieval import RetrievalTask
from tests.support.official_files import write_task
from tests.support.task_files import TAGS, treebank, write_babylm, write_collection
from tests.support.tiny_models import save_tiny

WORDS = [*TAGS]
TASKS = ["sts", "retrieval", "upos_probe", "blimp_supplement", "ewok", "entity_tracking"]
TASKS += ["pseudo_perplexity"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    rows = [(WORDS[k], WORDS[k + 1], f"{k}.0") for k in range(4)]
    write_task(folder / "glue", "STS-B", rows, rows)
    write_collection(folder / "retrieval", WORDS)
    write_babylm(folder / "babylm", WORDS)
    for name in ("probe", "intrinsic"):
        (folder / name).mkdir()
    (folder / "probe" / "xx-ud-train.conllu").write_text(treebank(6, 0))
    (folder / "probe" / "xx-ud-test.conllu.gz").write_bytes(gzip.compress(treebank(4, 1).encode()))
    (folder / "intrinsic" / "text.txt").write_text(f"{' '.join(WORDS)}\n")
    return folder


def broken(folder: Path, tokenizer: Path, name: str, value: float) -> Subject:
    """A model one of whose weights is ``value`` everywhere."""
    save_tiny(folder, tokenizer)
    file = folder / "model.safetensors"
    weights = load_file(file)
    (key,) = (each for each in weights if each.endswith(name))
    weights[key] = torch.full_like(weights[key], value)
    save_file(weights, file, {"format": "pt"})
    return find_subject(str(folder))


@pytest.mark.parametrize(
    "value", [pytest.param(torch.nan, id="nan"), pytest.param(torch.inf, id="infinity")]
)
@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_nan_has_no_score_and_the_evaluation_says_so(
    tmp_path: Path, tiny_tokenizer: Path, data: Path, caplog: pytest.LogCaptureFixture,
    task: str, value: float,
) -> None:  # fmt: skip
    name = "encoder.layer.1.output.LayerNorm.bias"
    model = broken(tmp_path / "model", tiny_tokenizer, name, value)
    (found,) = evaluate(model, make_tasks([task]), data, 1, tmp_path / "out", progress=False)
    assert not np.isfinite(found.metrics[found.primary])
    assert not found.is_finite
    assert f"{task}: no score, for what {model.name} gives is not finite" in caplog.text


def test_vectors_without_a_finite_length_have_no_cosine(
    tmp_path: Path, tiny_tokenizer: Path, data: Path
) -> None:
    name = "encoder.layer.1.output.LayerNorm.bias"
    model = broken(tmp_path / "model", tiny_tokenizer, name, 1e30)
    assert np.isnan(RetrievalTask().run(model, data, 0, False).metrics["ndcg_at_10"])


def test_a_model_of_numbers_is_not_warned_of(
    tmp_path: Path, tiny_tokenizer: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    evaluate(tmp_path / "model", ["retrieval"], data, 1, tmp_path / "out", progress=False)
    assert "no score" not in caplog.text


def test_weights_that_the_last_step_made_nan_give_no_answers(
    subject: Subject, glue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of all steps are finite, and argmax of NaN would be the first class."""
    tune = finetune.fine_tune

    def tune_and_break(model: Any, *given: Any, **more: Any) -> None:
        tune(model, *given, **more)
        with torch.no_grad():
            model.classifier.bias.fill_(torch.nan)

    monkeypatch.setattr("chronomask.evaluate.finetuned_task.fine_tune", tune_and_break)
    task = GlueTask("rte", FineTuning(epochs=1, max_length=32))
    with pytest.raises(
        RunError, match=r"rte.*what the fine-tuned model gives is not finite"
    ) as raised:
        task.run(subject, glue, 0, progress=False)
    assert "--set rte.learning_rate=NUMBER" in str(raised.value)
    assert "--set rte.precision=fp32" in str(raised.value)
