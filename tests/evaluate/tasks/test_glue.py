"""GLUE: what is read from its files and from the hub, what is refused, and the tasks' results."""

from __future__ import annotations

import gzip
import lzma
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import zstandard
from sklearn.metrics import accuracy_score, matthews_corrcoef

from chronomask.errors import DataError, RunError, UsageError
from chronomask.evaluate.batches import shuffled_batches
from chronomask.evaluate.finetune import FineTuning, open_seeded
from chronomask.evaluate.finetuned_task import _BestEpoch
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks.glue import (
    FORMATS,
    GlueTask,
    diagnostic,
    read_split,
    source_sha256,
)
from tests.support.official_files import (
    HEADERS,
    LABELS,
    MNLI_DEV,
    PLACES,
    sentence,
    table,
    write_glue,
    write_task,
)
from tests.support.official_model import make_tokenizer, save_model


@pytest.mark.parametrize("task", sorted(set(FORMATS) - {"mnli"}))
def test_reads_texts_and_labels_from_their_columns(glue: Path, task: str) -> None:
    folder = FORMATS[task].folder
    examples = read_split(task, glue, "dev")
    assert examples.texts == [sentence(k, k % 2 > 0) for k in range(5)]
    two = PLACES[folder][0] != PLACES[folder][1]
    assert examples.pairs == ([sentence(k + 1, k % 2 > 0) for k in range(5)] if two else None)
    expected = [float(LABELS[folder][k % 2]) if task == "stsb" else k % 2 for k in range(5)]
    assert examples.labels.tolist() == expected
    assert len(read_split(task, glue, "train")) == 12


def test_mnli_labels_mean_what_the_hub_says_and_dev_sets_differ(glue: Path) -> None:
    assert FORMATS["mnli"].class_names == ("entailment", "neutral", "contradiction")
    train = read_split("mnli", glue, "train")
    assert train.labels.tolist() == [k % 3 for k in range(12)]
    assert (train.texts[1], train.pairs and train.pairs[1]) == ("train premise 1", "claim 1")
    matched, mismatched = (read_split("mnli", glue, split) for split in FORMATS["mnli"].dev)
    assert matched.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert mismatched.labels.tolist() == [2, 0, 1, 2, 0]
    assert matched.texts[0] == "dev_matched premise 0"
    assert mismatched.texts[0] == "dev_mismatched premise 0"


def test_quotes_and_odd_line_ends_are_text(tmp_path: Path) -> None:
    rows = [['say "hi', "1"], ["a\u2028b", "0"], ['"', "1"]]
    table(tmp_path / "SST-2" / "dev.tsv", HEADERS["SST-2"], rows)
    path = tmp_path / "SST-2" / "dev.tsv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_split("sst2", tmp_path, "dev").texts == [row[0] for row in rows]


def test_old_line_ends_and_a_mark_are_read_too(glue: Path) -> None:
    path = glue / "glue" / "RTE" / "dev.tsv"
    expected = read_split("rte", glue, "dev")
    for mark, ends in ((b"", b"\r"), (b"\xef\xbb\xbf", b"\r\n")):
        plain = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        plain = plain.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        path.write_bytes(mark + plain.replace(b"\n", ends))
        found = read_split("rte", glue, "dev")
        assert (found.texts, found.pairs) == (expected.texts, expected.pairs)
        assert found.labels.tolist() == expected.labels.tolist()


def test_qqp_rows_that_are_cut_off_are_left_out_and_counted_and_empty_lines_are_none(
    glue: Path,
) -> None:
    path = glue / "glue" / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "77\t1\t2\tonly one question\n\n")
    examples = read_split("qqp", glue, "train")
    assert (len(examples), examples.skipped) == (12, 1)
    path = glue / "glue" / "RTE" / "train.tsv"
    path.write_text(path.read_text() + "\n\n77\tonly one\n")
    with pytest.raises(DataError, match=r"RTE/train.tsv, line 16: 2 columns instead of 4"):
        read_split("rte", glue, "train")


def test_diagnostic_pairs_with_and_without_labels(glue: Path) -> None:
    bare, path = diagnostic(glue)
    assert path == glue / "glue" / "AX" / "diagnostic.tsv"
    assert (len(bare), set(bare.labels.tolist())) == (4, {-1})
    header = [
        "Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain",
        "Premise", "Hypothesis", "Label",
    ]  # fmt: skip
    rows = [["", "", "", "", "", "p", "h", name] for name in ("neutral", "contradiction")]
    table(glue / "glue" / "AX" / "diagnostic-full.tsv", header, rows)
    full, path = diagnostic(glue)
    assert (full.labels.tolist(), full.pairs) == ([1, 2], ["h", "h"])
    (glue / "glue" / "AX" / "diagnostic-full.tsv").unlink()
    (glue / "glue" / "AX" / "diagnostic.tsv").unlink()
    assert diagnostic(glue)[1] is None


def break_label(path: Path) -> None:
    path.write_text(path.read_text().replace("not_entailment", "maybe", 1))


def break_column(path: Path) -> None:
    path.write_text(path.read_text().replace("sentence2", "hypothesis", 1))


def break_empty(path: Path) -> None:
    path.write_text("")


def break_header_only(path: Path) -> None:
    path.write_text(path.read_text().split("\n")[0] + "\n")


def break_encoding(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_label, r"dev.tsv, line 3: label 'maybe'; valid: entailment, not_entailment"),
        (break_column, r"no column 'sentence2'; its columns are: index, sentence1, hypothesis"),
        (break_empty, "dev.tsv is empty"),
        (break_header_only, "dev.tsv holds no examples"),
        (break_encoding, r"dev.tsv, line 7: byte 0xff is not UTF-8: convert the file"),
    ],
)
def test_bad_files_are_refused_by_place(glue: Path, damage, message: str) -> None:
    damage(glue / "glue" / "RTE" / "dev.tsv")
    with pytest.raises(DataError, match=message):
        read_split("rte", glue, "dev")


@pytest.mark.parametrize("score", ["5.5", "-1", "nan", "high"])
def test_scores_out_of_range_are_refused(glue: Path, score: str) -> None:
    path = glue / "glue" / "STS-B" / "train.tsv"
    path.write_text(path.read_text().replace("5.000", score, 1))
    with pytest.raises(DataError, match=f"line 3: score '{score}'"):
        read_split("stsb", glue, "train")


def test_mnli_rows_without_a_gold_label_are_refused(glue: Path) -> None:
    cells = [f"x{k}" for k in range(15)]
    table(glue / "glue" / "MNLI" / "dev_matched.tsv", MNLI_DEV, [[*cells, "-"]])
    with pytest.raises(DataError, match="label '-'; valid: entailment, neutral, contradiction"):
        read_split("mnli", glue, "dev_matched")


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_files_may_be_compressed(
    glue: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    plain = read_split("mnli", glue, "train"), diagnostic(glue)[0]
    assert len(plain[1]) == 4
    for path in (glue / "glue" / "MNLI" / "train.tsv", glue / "glue" / "AX" / "diagnostic.tsv"):
        path.with_name(path.name + ending).write_bytes(compress(path.read_bytes()))
        with pytest.raises(
            UsageError, match=f"holds {path.name} and {path.name}{ending}: leave only"
        ):
            read_split("mnli", glue, "train") if path.name == "train.tsv" else diagnostic(glue)
        path.unlink()
    packed = read_split("mnli", glue, "train"), diagnostic(glue)[0]
    for before, after in zip(plain, packed, strict=True):
        assert (after.texts, after.pairs) == (before.texts, before.pairs)
        assert after.labels.tolist() == before.labels.tolist()


def test_a_task_may_be_named_by_its_own_folder(
    glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = source_sha256("cola", glue)
    assert source_sha256("cola", glue / "glue" / "CoLA") == whole
    monkeypatch.chdir(glue / "glue" / "CoLA")
    assert source_sha256("cola", Path()) == whole
    with pytest.raises(UsageError, match=r"RTE/train.tsv does not exist"):
        source_sha256("rte", Path())
    shutil.copytree(
        glue / "glue" / "CoLA", tmp_path / "CoLA" / "CoLA"
    )  # a folder of that name around it
    (tmp_path / "CoLA" / "train.tsv").write_text("not read")
    assert source_sha256("cola", tmp_path / "CoLA") == whole


def test_missing_files_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CoLA/train.tsv does not exist"):
        read_split("cola", tmp_path, "train")


def test_the_hash_is_of_what_is_read(glue: Path, tmp_path: Path) -> None:
    before = source_sha256("mnli", glue)
    write_glue(tmp_path / "elsewhere")
    assert source_sha256("mnli", tmp_path / "elsewhere") == before
    (glue / "glue" / "MNLI" / "notes.txt").write_text("not read")
    assert source_sha256("mnli", glue) == before
    path = glue / "glue" / "MNLI" / "dev_mismatched.tsv"
    path.write_text(path.read_text().replace("claim 4", "claim 5"))
    assert source_sha256("mnli", glue) != before


HUB = Path("hub")


def hub_rows(names: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )
    columns = {"premise": ["p0", "p1"], "hypothesis": ["h0", "h1"], "label": [2, 0], "idx": [0, 1]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_hub_rows_are_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str, split: str) -> datasets.Dataset:
        asked.append((*names, split))
        return hub_rows(["entailment", "neutral", "contradiction"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = read_split("mnli", HUB, "dev_mismatched")
    assert asked == [("nyu-mll/glue", "mnli", "validation_mismatched")]
    assert (examples.texts, examples.pairs) == (["p0", "p1"], ["h0", "h1"])
    np.testing.assert_array_equal(examples.labels, [2, 0])


def test_hub_rows_with_another_label_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hub_rows(["contradiction", "entailment", "neutral"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match="its class numbers cannot be interpreted"):
        read_split("mnli", HUB, "train")


def test_the_hub_out_of_reach_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UsageError, match=r"cannot be loaded from the hub: ConnectionError: no route"
    ):
        read_split("cola", HUB, "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'chronomask\[hub\]'"):
        read_split("cola", HUB, "train")


QUICK = FineTuning(epochs=1, max_length=32, batch_size=8)


def separable(glue: Path, folder: str, train: int, dev: int) -> None:
    write_task(
        glue,
        folder,
        [(sentence(k, k % 2 > 0), "x", str(k % 2)) for k in range(train)],
        [(sentence(k, k % 3 > 0), "x", str(int(k % 3 > 0))) for k in range(1000, 1000 + dev)],
    )


@pytest.mark.parametrize("name", FORMATS)
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
    for name in FORMATS:
        recipe = GlueTask(name).config
        assert (recipe.learning_rate, recipe.batch_size, recipe.max_length) == (2e-5, 32, 128)
        assert recipe.epochs == (5 if name in ("mrpc", "wnli") else 3)
    primary = {name: FORMATS[name].metrics[0] for name in FORMATS}
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
    states = []
    for seed in (0, 0, 1):
        with open_seeded(subject, GlueTask.head, QUICK, seed, num_labels=3) as model:
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


def test_of_learning_rates_that_score_the_same_the_lowest_is_chosen(
    subject: Subject, tmp_path: Path
) -> None:
    separable(tmp_path, "SST-2", 20, 4)
    config = QUICK.replace(["learning_rates=[1e-9,1e-10]"])
    details = GlueTask("sst2", config).run(subject, tmp_path, 0, progress=False).details
    assert details["held_out_score_at_1e-09"] == details["held_out_score_at_1e-10"]
    assert details["learning_rate"] == 1e-10


def test_a_learning_rate_whose_loss_is_not_finite_is_not_chosen(
    subject: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    separable(tmp_path, "SST-2", 20, 4)
    config = QUICK.replace(["learning_rates=[1e-5,1e9]"])
    result = GlueTask("sst2", config).run(subject, tmp_path, 0, progress=False)
    assert set(result.details) == {"learning_rate", "held_out_score_at_1e-05"}
    assert (
        "sst2 at 1e+09: the loss or the answers are not finite, so this rate is not chosen"
        in caplog.text
    )
    with pytest.raises(
        RunError, match=r"lower ones, such as --set 'sst2\.learning_rates=\[1e\+07\]'$"
    ):
        GlueTask("sst2", QUICK.replace(["learning_rates=[1e8,1e9]"])).run(
            subject, tmp_path, 0, progress=False
        )


def test_training_stops_by_a_slice_of_train_alone(subject: Subject, tmp_path: Path) -> None:
    separable(tmp_path, "SST-2", 80, 12)
    path = tmp_path / "SST-2" / "dev.tsv"
    changes = ["epochs=6", "held_out_share=0.2"]
    still = QUICK.replace([*changes, "patience=2", "learning_rates=[1e-9]"])  # scores stay equal
    result = GlueTask("sst2", still).run(subject, tmp_path, 0, progress=False)
    assert (result.details["best_epoch"], result.details["epochs_trained"]) == (1, 3)
    assert result.num_examples["train"] == 64
    assert result.recipe["patience"] == 2

    assert result.details["learning_rate"] == 1e-9
    assert result.details["held_out_score"] == result.details["held_out_score_at_1e-09"]

    learning = QUICK.replace([*changes, "epochs=10", "patience=9", "learning_rate=3e-3"])
    path.write_text(path.read_text().replace("\t1\n", "\t0\n"))
    result = GlueTask("sst2", learning).run(subject, tmp_path, 0, progress=False)
    assert result.details["held_out_score"] > 0.9  # whatever the dev set says
    assert result.details["best_epoch"] > 1


def test_the_best_epochs_weights_are_kept() -> None:
    model: Any = torch.nn.Linear(1, 1, bias=False)
    scores = iter([0.1, 0.7, 0.7, 0.2])
    stops = _BestEpoch(model, lambda: next(scores), patience=2)
    asked = []
    for epoch in (1, 2, 3, 4):
        with torch.no_grad():
            model.weight.fill_(epoch)
        asked.append(stops(epoch))
    assert asked == [False, False, False, True]
    assert stops.restore() == {"best_epoch": 2, "epochs_trained": 4, "held_out_score": 0.7}
    assert model.weight.item() == 2


def test_a_slice_that_cannot_be_is_refused_beforehand(subject: Subject, tmp_path: Path) -> None:
    separable(tmp_path, "SST-2", 6, 4)
    with pytest.raises(
        DataError, match=r"6 groups .*'sst2\.learning_rates=\[\]'.*sst2\.patience=null"
    ):
        GlueTask("sst2", QUICK.replace(["patience=1", "held_out_share=0.01"])).check(
            subject, tmp_path
        )


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
    with pytest.raises(
        RunError,
        match=r"by step 6; .*--set cola\.learning_rate=.*--set cola\.precision",
    ):
        GlueTask("cola", config).run(subject, glue, 0, progress=False)


def test_a_loss_that_is_not_finite_is_seen_before_an_epoch_is_scored(
    subject: Subject, tmp_path: Path
) -> None:
    """A model of NaN always says the first class, which may be the best score there is."""
    separable(tmp_path, "SST-2", 40, 4)
    stopping = QUICK.replace(["learning_rate=1e30", "epochs=10", "patience=1"])
    with pytest.raises(RunError, match="loss is not finite by step 5; try a lower"):
        GlueTask("sst2", stopping).run(subject, tmp_path, 0, progress=False)
    choosing = stopping.replace(["learning_rates=[1e-9,1e30]"])
    found = GlueTask("sst2", choosing).run(subject, tmp_path, 0, progress=False)
    assert found.details["learning_rate"] == 1e-9


def test_tokens_without_weights_are_refused_before_training(glue: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path / "model")
    path = glue / "glue" / "RTE" / "dev.tsv"
    model = find_subject(str(tmp_path / "model"))
    task = GlueTask("rte", QUICK)
    task.check(model, glue)
    head, *lines = path.read_text().splitlines()
    number, _, *rest = lines[-1].split("\t")
    path.write_text("\n".join([head, *lines[:-1], "\t".join([number, "a zebra", *rest])]) + "\n")
    with pytest.raises(UsageError, match="tokens were added to the tokenizer alone"):
        task.check(model, glue)


def test_scores_that_cannot_be_computed_are_refused_beforehand(
    subject: Subject, glue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        UsageError, match=r"Scoring GLUE needs .*pip install 'chronomask\[evaluate\]'"
    ):
        GlueTask("cola", QUICK).check(subject, glue)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_beforehand(subject: Subject, glue: Path) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        GlueTask("cola", QUICK.replace(["device=cuda"])).check(subject, glue)


def test_half_precision_trains_too(subject: Subject, tmp_path: Path) -> None:
    separable(tmp_path, "SST-2", 96, 30)
    settings = ["epochs=6", "learning_rate=3e-3", "precision=bf16"]
    result = GlueTask("sst2", QUICK.replace(settings)).run(subject, tmp_path, 0, progress=False)
    assert result.metrics["accuracy"] >= 0.9
