"""GLUE tasks from files to results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef

from chronomask.errors import RunError, UsageError
from chronomask.evaluate.batches import shuffled_batches
from chronomask.evaluate.finetune import FineTuning, open_seeded
from chronomask.evaluate.glue import GLUE_TASKS, GlueTask
from chronomask.evaluate.subject import Subject
from tests.support.official_files import sentence, table, write_task

QUICK = FineTuning(epochs=1, max_length=32, batch_size=8)


def separable(glue: Path, folder: str, train: int, dev: int) -> None:
    write_task(
        glue,
        folder,
        [(sentence(k, k % 2 > 0), "x", str(k % 2)) for k in range(train)],
        [(sentence(k, k % 3 > 0), "x", str(int(k % 3 > 0))) for k in range(1000, 1000 + dev)],
    )


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_task_gives_a_result(name: str, subject: Subject, glue: Path) -> None:
    task = GlueTask(name, QUICK)
    task.check(subject, glue)
    result = task.run(subject, glue, 0, progress=False)
    prediction, label = result.examples["prediction"], result.examples["label"]
    dev = "dev_matched" if name == "mnli" else "dev"
    assert prediction.shape == label.shape == (result.num_examples[dev],)
    assert result.num_examples["train"] == 12
    assert result.primary in result.metrics
    assert all(-1 <= value <= 1 for value in result.metrics.values())
    assert (result.task, result.family, result.seed) == (name, "glue", 0)
    assert {"torch", "scikit-learn"} <= result.versions.keys()
    assert result.recipe["learning_rate"] == 2e-5
    assert result.data_sha256 == task.data_sha256(glue)
    if name == "cola":
        assert result.metrics["mcc"] == matthews_corrcoef(label, prediction)


def test_mnli_scores_both_dev_sets_and_answers_the_diagnostic(subject: Subject, glue: Path) -> None:
    result = GlueTask("mnli", QUICK).run(subject, glue, 0, progress=False)
    arrays = result.examples
    assert set(arrays) == {
        "prediction", "label", "prediction_mismatched", "label_mismatched", "prediction_ax",
    }  # fmt: skip
    assert result.metrics == {
        "accuracy": accuracy_score(arrays["label"], arrays["prediction"]),
        "accuracy_mismatched": accuracy_score(
            arrays["label_mismatched"], arrays["prediction_mismatched"]
        ),
    }
    assert result.num_examples == {
        "train": 12, "dev_matched": 6, "dev_mismatched": 5, "ax": 4,
    }  # fmt: skip
    assert result.recipe["classes"] == ["entailment", "neutral", "contradiction"]
    header = ["Premise", "Hypothesis", "Label"]
    rows = [["p", "h", name] for name in ("neutral", "entailment")]
    table(glue / "glue" / "AX" / "diagnostic-full.tsv", header, rows)
    result = GlueTask("mnli", QUICK).run(subject, glue, 0, progress=False)
    assert result.metrics["mcc_ax"] == matthews_corrcoef([1, 0], result.examples["prediction_ax"])


def test_recipes_of_the_literature() -> None:
    for name, recipe in GLUE_TASKS.items():
        assert (recipe.learning_rate, recipe.batch_size, recipe.max_length) == (2e-5, 32, 128)
        assert recipe.epochs == (5 if name in ("mrpc", "wnli") else 3)
    primary = {name: GlueTask(name)._metrics[0] for name in GLUE_TASKS}
    assert primary == {
        "cola": "mcc", "sst2": "accuracy", "mrpc": "f1", "stsb": "spearman", "qqp": "f1",
        "mnli": "accuracy", "qnli": "accuracy", "rte": "accuracy", "wnli": "accuracy",
    }  # fmt: skip


def test_a_model_learns_a_separable_task(subject: Subject, tmp_path: Path) -> None:
    separable(tmp_path, "SST-2", 96, 30)
    task = GlueTask("sst2", QUICK.replace(["epochs=6", "learning_rate=3e-3"]))
    result = task.run(subject, tmp_path, 0, progress=False)
    assert result.metrics["accuracy"] >= 0.95
    assert result.examples["label"].tolist() == [int(k % 3 > 0) for k in range(1000, 1030)]


def test_a_model_that_always_says_one_class_scores_its_share(
    subject: Subject, tmp_path: Path
) -> None:
    separable(tmp_path, "MRPC", 96, 30)
    rows = [(sentence(k, k % 2 > 0), "x", "1") for k in range(64)]
    dev = [(sentence(k, True), "x", str(int(k % 3 > 0))) for k in range(30)]
    write_task(tmp_path, "MRPC", rows, dev)
    task = GlueTask("mrpc", QUICK.replace(["epochs=3", "learning_rate=2e-3"]))
    result = task.run(subject, tmp_path, 0, progress=False)
    assert set(result.examples["prediction"]) == {1}
    share = 20 / 30
    assert result.metrics == pytest.approx({"accuracy": share, "f1": 2 * share / (1 + share)})


def test_scores_are_learned_by_regression(subject: Subject, tmp_path: Path) -> None:
    rows = [(sentence(k, k % 2 > 0), "x", f"{5 * (k % 2)}.0") for k in range(96)]
    write_task(tmp_path, "STS-B", rows, rows[:20])
    task = GlueTask("stsb", QUICK.replace(["epochs=15", "learning_rate=2e-3"]))
    result = task.run(subject, tmp_path, 0, progress=False)
    assert result.metrics["pearson"] > 0.8
    assert result.examples["prediction"].dtype == np.float64
    assert result.examples["label"].max() == 5


def test_numbers_are_a_function_of_the_seed(subject: Subject, glue: Path) -> None:
    """Also after other draws, other seeds before it, and in another order."""
    config = QUICK.replace(["learning_rate=1e-3"])
    first = GlueTask("stsb", config).run(subject, glue, 1, progress=False)
    torch.rand(3)
    task = GlueTask("stsb", config)
    other = task.run(subject, glue, 0, progress=False)
    again = task.run(subject, glue, 1, progress=False)
    np.testing.assert_array_equal(first.examples["prediction"], again.examples["prediction"])
    assert not np.array_equal(first.examples["prediction"], other.examples["prediction"])


def test_the_head_is_drawn_by_the_seed_and_the_rest_is_the_models(subject: Subject) -> None:
    from transformers import AutoModelForSequenceClassification as Auto

    states = []
    for seed in (0, 0, 1):
        with open_seeded(subject, Auto, QUICK, seed, num_labels=3) as model:
            states.append(model.state_dict())
    trained = subject.masked_lm().state_dict()
    heads = [name for name in states[0] if name not in trained]
    assert sorted(heads) == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight",
    ]  # fmt: skip
    for name, values in states[0].items():
        torch.testing.assert_close(values, states[1][name], rtol=0, atol=0)
        if name in trained:
            torch.testing.assert_close(values, trained[name], rtol=0, atol=0)
    assert not torch.equal(states[0]["classifier.weight"], states[2]["classifier.weight"])


def test_limit_takes_examples_in_file_order(subject: Subject, glue: Path) -> None:
    result = GlueTask("rte", QUICK.replace(["limit=3"])).run(subject, glue, 0, progress=False)
    assert result.num_examples == {"train": 3, "dev": 3}
    assert result.recipe["limit"] == 3


def test_learning_rate_is_chosen_on_a_slice_of_train_alone(
    subject: Subject, tmp_path: Path
) -> None:
    separable(tmp_path, "SST-2", 80, 12)
    path = tmp_path / "SST-2" / "dev.tsv"
    config = QUICK.replace(["learning_rates=[1e-8,3e-3]", "epochs=6", "held_out_share=0.2"])
    result = GlueTask("sst2", config).run(subject, tmp_path, 0, progress=False)
    assert result.details["learning_rate"] == 3e-3
    assert result.details["held_out_score_at_0.003"] > result.details["held_out_score_at_1e-08"]
    assert result.num_examples["train"] == 80
    lines = path.read_text().splitlines()
    turned = [line[:-1] + str(1 - int(line[-1])) for line in lines[1:]]
    path.write_text("\n".join([lines[0], *turned]) + "\n")
    other = GlueTask("sst2", config).run(subject, tmp_path, 0, progress=False)
    assert other.details == result.details
    assert other.metrics["accuracy"] == pytest.approx(1 - result.metrics["accuracy"])


def test_batches_hold_each_example_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 1003)
    batches = shuffled_batches(lengths, 16, key=5)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(1003))
    assert sorted(map(len, batches))[1:] == [16] * 62
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()
    firsts = [lengths[batch].max() for batch in batches]
    assert firsts != sorted(firsts)
    again = shuffled_batches(lengths, 16, key=5)
    assert all(map(np.array_equal, batches, again))
    assert not all(map(np.array_equal, batches, shuffled_batches(lengths, 16, key=6)))


def test_a_loss_that_is_not_finite_ends_the_task(subject: Subject, glue: Path) -> None:
    config = QUICK.replace(["learning_rate=1e30", "epochs=3"])
    with pytest.raises(RunError, match="loss is not finite by step 6; try a lower learning rate"):
        GlueTask("cola", config).run(subject, glue, 0, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_beforehand(subject: Subject, glue: Path) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        GlueTask("cola", QUICK.replace(["device=cuda"])).check(subject, glue)


def test_half_precision_trains_too(subject: Subject, tmp_path: Path) -> None:
    separable(tmp_path, "SST-2", 96, 30)
    settings = ["epochs=6", "learning_rate=3e-3", "precision=bfloat16"]
    result = GlueTask("sst2", QUICK.replace(settings)).run(subject, tmp_path, 0, progress=False)
    assert result.metrics["accuracy"] >= 0.9
