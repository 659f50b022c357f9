import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from chronomask.errors import DataError
from chronomask.runs.result import TaskResult, read_results
from tests.support.npz import npz, npz_of_header
from tests.support.results import result


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    written = result()
    path = written.save(tmp_path / "new" / "folder")
    back = TaskResult.load(path)
    assert back == written
    assert back.examples["prediction"].tolist() == [1, 0, 1]
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "cola-seed1.examples.npz",
        "cola-seed1.json",
    ]


def test_reads_a_folder_in_order(tmp_path: Path) -> None:
    for seed in (2, 0):
        result(seed=seed).save(tmp_path)
    assert [r.seed for r in read_results([tmp_path])] == [0, 2]


def damage_version(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))


def damage_numbers(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def damage_examples(path: Path) -> None:
    examples = path.with_suffix(".examples.npz")
    examples.write_bytes(examples.read_bytes()[:-1])


def drop_examples(path: Path) -> None:
    path.with_suffix(".examples.npz").unlink()


def drop_a_key(path: Path) -> None:
    values = json.loads(path.read_text())
    del values["metrics"]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage", [damage_version, damage_numbers, damage_examples, drop_examples, drop_a_key]
)
def test_refuses_a_damaged_result_by_name(tmp_path: Path, damage) -> None:
    path = result().save(tmp_path)
    damage(path)
    with pytest.raises(DataError, match="cola-seed1"):
        TaskResult.load(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"metrics": {"mcc": "high"}}, r"metrics\.mcc is 'high' and no number"),
        ({"metrics": {"mcc": True}}, r"metrics\.mcc is True and no number"),
        ({"metrics": {"mcc": 10**400}}, "too large"),
        ({"metrics": {}}, "no metric is called 'mcc', the primary one"),
        ({"metrics": None}, "NoneType"),
        ({"num_examples": [1]}, "list"),
        ({"details": {"a": "b"}}, r"details\.a is 'b' and no number"),
        ({"unit": 5}, "unit is 5 and no text"),
        ({"title": 5}, "title is 5 and no text"),
        ({"trains_model": "no"}, "trains_model is 'no', neither true nor false"),
        ({"seed": "1"}, "seed is '1' and no number"),
    ],
)
def test_refuses_a_result_that_was_edited(tmp_path: Path, changes, what: str) -> None:
    path = result().save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=f"cola-seed1.json is not a whole result .*{what}"):
        TaskResult.load(path)


def test_results_from_before_tasks_stated_title_and_kind_are_read(tmp_path: Path) -> None:
    own = {"title": "Acceptability", "trains_model": False}
    path = result(**own).save(tmp_path)
    values = json.loads(path.read_text())
    assert TaskResult.load(path) == result(**own)
    path.write_text(json.dumps({key: values[key] for key in values.keys() - own.keys()}))
    before = TaskResult.load(path)
    assert (before.title, before.trains_model) == ("CoLA", True)


def test_a_copy_is_no_further_seed_and_the_way_out_works(tmp_path: Path) -> None:
    result().save(tmp_path)
    for end in (".json", ".examples.npz"):
        file = tmp_path / f"cola-seed1{end}"
        (tmp_path / f"cola-seed1 (1){end}").write_bytes(file.read_bytes())
    with pytest.raises(
        DataError,
        match=r"\(1\)\.json holds .* seed 1: rename it to cola-seed1\.json and its examples",
    ):
        read_results([tmp_path])
    for end in (".json", ".examples.npz"):
        (tmp_path / f"cola-seed1 (1){end}").rename(tmp_path / f"cola-seed1{end}")
    assert len(read_results([tmp_path])) == 1


def replace_examples(path: Path, content: bytes) -> None:
    """Other examples, with the hash that fits them, as only the maker of a result writes them."""
    path.with_suffix(".examples.npz").write_bytes(content)
    values = json.loads(path.read_text()) | {"examples_sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(values))


def test_examples_take_no_more_memory_than_those_counted(tmp_path: Path) -> None:
    path = result().save(tmp_path)
    replace_examples(path, npz(prediction=np.zeros(200_000), label=np.zeros(200_000)))
    with pytest.raises(
        DataError, match=r"its arrays take 3,200,\d+ bytes, more than 1,0.*evaluate again"
    ):
        TaskResult.load(path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"num_examples": {"dev": 200_000}}))
    assert TaskResult.load(path).examples["label"].size == 200_000


def test_examples_without_their_bytes_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = result(num_examples={"dev": 10**13}).save(tmp_path)
    for content in (
        npz_of_header((10**12,)),
        npz()[:-30],
        b"",
        npz_of_header((2,), b"\x93NUMPY\x09\x00"),
    ):
        replace_examples(path, content)
        with pytest.raises(DataError, match=r"not a whole result .* delete it and evaluate again"):
            TaskResult.load(path)
