"""Prepared rows come back as they were written, and damage is found."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronomask.data.annotation import SPECIAL
from chronomask.data.folder import PreparedData
from chronomask.data.manifest import MANIFEST, fingerprint, values_sha256
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.errors import DataError, RunError, UsageError
from tests.support.prepared_rows import FACTS, made_rows, written
from tests.support.processes import python_path


@pytest.fixture
def copy(tiny_data: PreparedData, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data.path, tmp_path / "copy"))


@settings(max_examples=25)
@given(
    num_rows=st.integers(1, 40),
    shard_rows=st.integers(1, 50),
    batch=st.integers(1, 50),
    seed=st.integers(0, 5),
)
def test_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, shard_rows: int, batch: int, seed: int
) -> None:
    data = written(tmp_path_factory.mktemp("rows"), num_rows, shard_rows, batch)
    ids, annotation, bounds = made_rows(num_rows)
    chosen = np.random.default_rng(seed).integers(0, num_rows, 11)
    rows = data.split("train").read(chosen, epoch=2)
    np.testing.assert_array_equal(rows.input_ids, ids[chosen])
    np.testing.assert_array_equal(rows.token_class, annotation[chosen] & 63)
    np.testing.assert_array_equal(rows.row_id, chosen)
    assert (rows.epoch == 2).all()
    expected = [
        position * 8 + offset
        for position, row in enumerate(chosen.tolist())
        for offset in [0, *(bounds[bounds // 8 == row] % 8).tolist()]
    ]
    assert rows.cu_seqlens.tolist() == [*expected, 11 * 8]
    assert rows.cu_seqlens.dtype == np.int32
    assert rows.input_ids.dtype == np.int64
    assert rows.word_id.dtype == np.int32
    assert rows.token_class.dtype == np.uint8


def test_more_shards_are_read_than_a_process_may_open_files_at_first(tmp_path: Path) -> None:
    data = written(tmp_path, num_rows=70, shard_rows=1, batch=7)
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = sum(1 for _ in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 100, allowed[1]))
    try:
        rows = data.split("train").read(np.arange(70))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    np.testing.assert_array_equal(rows.input_ids, made_rows(70)[0])


def test_a_system_that_allows_no_more_files_is_told_as_the_reason(tmp_path: Path) -> None:
    """And not that the data must be prepared again."""
    data = written(tmp_path, num_rows=70, shard_rows=1, batch=7)
    code = (
        "import resource, sys, numpy as np; from chronomask.data.folder import PreparedData\n"
        "data = PreparedData.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))\n"
        "data.split('train').read(np.arange(70))"
    )
    env = os.environ | {"PYTHONPATH": python_path()}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(data.path)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert "Too many open files" in ended.stderr
    assert "let a process open more files, such as with  ulimit -n 65536" in ended.stderr
    assert "--force" not in ended.stderr


def test_words_are_counted_per_row(tmp_path: Path) -> None:
    out = RowWriter(tmp_path, "train", 8, 1000)
    annotation = np.array([[SPECIAL, 64 + 2, 2, 64, 64 + 1, SPECIAL, SPECIAL, SPECIAL]])
    out.write(np.zeros((1, 8)), annotation, np.array([6]), 6)
    write_manifest(tmp_path, FACTS, {"train": out.finish(1)})
    rows = PreparedData.open(tmp_path).split("train").read(np.array([0]))
    assert rows.word_id.tolist() == [[-1, 0, 0, 1, 2, -1, -1, -1]]
    assert rows.token_class.tolist() == [[0, 2, 2, 0, 1, 0, 0, 0]]
    assert rows.cu_seqlens.tolist() == [0, 6, 8]


def test_files_depend_on_rows_alone(tmp_path: Path) -> None:
    first = written(tmp_path / "a", 30, shard_rows=7, batch=30)
    second = written(tmp_path / "b", 30, shard_rows=7, batch=4)
    assert first.manifest == second.manifest


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    out = RowWriter(tmp_path, "train", 8, 70_000)
    ids = np.full((2, 8), 69_999)
    out.write(ids, np.zeros((2, 8)), np.empty(0, np.int64), 16)
    write_manifest(tmp_path, FACTS | {"vocab_size": 70_000}, {"train": out.finish(1)})
    rows = PreparedData.open(tmp_path).split("train").read(np.array([1]))
    assert (rows.input_ids == 69_999).all()


def test_storage_is_three_bytes_a_token(tiny_data: PreparedData) -> None:
    entry = tiny_data.manifest.splits["train"]
    ids = sum(shard.ids.bytes + shard.annotation.bytes for shard in entry.shards)
    assert ids <= 3 * entry.num_rows * tiny_data.row_length + 2 * 128 * len(entry.shards)


def test_whole_data_verifies(tiny_data: PreparedData) -> None:
    PreparedData.open(tiny_data.path, verify=True)


@pytest.mark.parametrize("name", ["ids-00000.npy", "annotation-00000.npy", "bounds-00000.npy"])
def test_any_flipped_bit_is_found(copy: Path, name: str) -> None:
    file = copy / "train" / name
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 4
    file.write_bytes(raw)
    PreparedData.open(copy)  # opening checks sizes only
    with pytest.raises(DataError, match=rf"damaged: train/{name}; run `chronomask prepare`"):
        PreparedData.open(copy, verify=True)


def test_a_flipped_bit_is_found_anywhere(copy: Path) -> None:
    random = np.random.default_rng(0)
    files = [file for file in sorted(copy.rglob("*")) if file.is_file()]
    assert {"manifest.json", "config.yaml", "statistics.json", "tokenizer.json"} <= {
        file.name for file in files
    }
    for file in files:
        whole = file.read_bytes()
        places = {0, len(whole) - 1, *random.integers(0, len(whole), 12).tolist()}
        for place in places if whole else ():
            raw = bytearray(whole)
            raw[place] ^= 1 << int(random.integers(8))
            file.write_bytes(raw)
            with pytest.raises(DataError, match=re.escape(file.name)):
                PreparedData.open(copy, verify=True)
        file.write_bytes(whole)
    PreparedData.open(copy, verify=True)


def test_a_changed_tokenizer_is_found(copy: Path) -> None:
    file = copy / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text()[:-1] + " ")  # of the same size
    with pytest.raises(DataError, match=r"damaged: tokenizer/tokenizer\.json"):
        PreparedData.open(copy, verify=True)


def test_a_changed_manifest_is_found(copy: Path) -> None:
    values = json.loads((copy / MANIFEST).read_text())
    values["packing"] = "documents"
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        PreparedData.open(copy, verify=True)


def test_a_truncated_row_file_is_refused(copy: Path) -> None:
    file = copy / "train" / "ids-00000.npy"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=rf"ids-00000\.npy has {size - 100:,} bytes instead of {size:,}"
    ):
        PreparedData.open(copy)


def test_a_missing_row_file_is_refused(copy: Path) -> None:
    (copy / "train" / "bounds-00000.npy").unlink()
    with pytest.raises(DataError, match=r"bounds-00000\.npy is missing"):
        PreparedData.open(copy)


def test_a_folder_without_a_manifest_is_not_prepared_data(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    with pytest.raises(
        UsageError, match=r"no manifest\.json: it is not prepared data.*prepare TEXT"
    ):
        PreparedData.open(copy)
    with pytest.raises(UsageError, match="not a folder"):
        PreparedData.open(copy / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"row_length": "long"}, "row_length"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_a_strange_manifest_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    values = json.loads((copy / MANIFEST).read_text()) | change
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        PreparedData.open(copy)


def test_a_manifest_names_no_file_outside(copy: Path) -> None:
    text = (copy / MANIFEST).read_text().replace("train/ids-00000", "../../ids-00000")
    (copy / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="outside its folder"):
        PreparedData.open(copy)


def changed(copy: Path, **values: Any) -> None:
    """Write a manifest whose hash fits its values, as only its maker does."""
    found = json.loads((copy / MANIFEST).read_text()) | values
    found["values_sha256"] = values_sha256(found)
    (copy / MANIFEST).write_text(json.dumps(found))


@pytest.mark.parametrize("name", ["../train", "/train", "a/b", "..", "a\x1b"])
def test_names_that_become_parts_of_paths_are_plain(copy: Path, name: str) -> None:
    splits = json.loads((copy / MANIFEST).read_text())["splits"]
    changed(copy, splits={**splits, name: splits["held_out"]})
    with pytest.raises(DataError, match=r"part of a file's name|control character"):
        PreparedData.open(copy)
    changed(copy, splits=splits, fingerprint=name)
    with pytest.raises(DataError, match=r"part of a file's name|control character"):
        PreparedData.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 10**30}, r"splits\.train\.num_rows"),
        ({"num_rows": 10**9}, r"train has 1,000,000,000 rows, and its shards have"),
        ({"shards": []}, r"rows, and its shards have 0"),
        ({"num_tokens": -1}, r"splits\.train\.num_tokens"),
    ],
)
def test_counts_that_do_not_fit_the_shards_are_refused(
    copy: Path, change: dict[str, object], message: str
) -> None:
    splits = json.loads((copy / MANIFEST).read_text())["splits"]
    changed(copy, splits={**splits, "train": {**splits["train"], **change}})
    with pytest.raises(DataError, match=rf"{message}.*prepare.*--force"):
        PreparedData.open(copy)


@pytest.mark.parametrize("length", [0, 10**30, 1 << 30])
def test_rows_longer_than_the_files_are_refused(copy: Path, length: int) -> None:
    changed(copy, row_length=length)
    with pytest.raises(DataError, match=r"row_length|too few for .* rows of 1,073,741,824 tokens"):
        PreparedData.open(copy)


@pytest.mark.parametrize(
    "values",
    [
        {"splits": 5},
        {"splits": {"train": 5}},
        {"splits": {"train": {"unknown_tokens": "many"}}},
        {"splits": {"train": {"unknown_tokens": 1e301}}},
        {"skipped": {"too short": {"count": 1}}},
        {"sources": ["text.txt"]},
    ],
)
def test_statistics_of_another_form_are_refused(copy: Path, values: dict[str, Any]) -> None:
    (copy / "statistics.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"statistics\.json .*'{next(iter(values))}'.*--force"):
        PreparedData.open(copy).unknown_share()


def test_statistics_that_lack_a_count_are_read(copy: Path) -> None:
    (copy / "statistics.json").write_text('{"splits": {"train": {"unknown_tokens": 1}}}')
    assert PreparedData.open(copy).unknown_share() == 1.0


def test_a_manifest_that_is_no_json_is_refused(copy: Path) -> None:
    for text in ("{", "[" * 200_000):
        (copy / MANIFEST).write_text(text)
        with pytest.raises(DataError, match="not a readable manifest"):
            PreparedData.open(copy)


def test_pickles_are_never_opened(copy: Path, tiny_data: PreparedData) -> None:
    file = copy / "train" / "bounds-00000.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    text = (copy / MANIFEST).read_text()
    size = tiny_data.manifest.splits["train"].shards[0].bounds.bytes
    (copy / MANIFEST).write_text(
        text.replace(f'"bytes": {size}', f'"bytes": {file.stat().st_size}', 1)
    )
    values = json.loads((copy / MANIFEST).read_text())
    values["splits"]["train"]["shards"][0]["bounds"]["bytes"] = file.stat().st_size
    values["splits"]["train"]["shards"][0]["ids"]["bytes"] = (
        (copy / "train/ids-00000.npy").stat().st_size
    )
    values["values_sha256"] = values_sha256(values)
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match="cannot be read"):
        PreparedData.open(copy).split("train").read(np.array([0]))


def test_unknown_rows_and_splits_are_refused(tiny_data: PreparedData) -> None:
    with pytest.raises(UsageError, match="did you mean 'train'"):
        tiny_data.split("trian")
    split = tiny_data.split("train")
    with pytest.raises(
        DataError, match=f"no row {split.num_rows}; its rows are 0 to {split.num_rows - 1}"
    ):
        split.read(np.array([0, split.num_rows]))


def test_the_fingerprint_names_the_rows(tiny_data: PreparedData) -> None:
    values = tiny_data.manifest.to_dict()
    assert fingerprint(values) == tiny_data.fingerprint
    assert fingerprint(values | {"chronomask_version": "9"}) == tiny_data.fingerprint
    assert fingerprint(values | {"row_length": 64}) != tiny_data.fingerprint
    values["splits"]["train"]["shards"][0]["ids"]["sha256"] = "1" * 64
    assert fingerprint(values) != tiny_data.fingerprint


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(RunError, match="No space left on device; make room"):
        written(tmp_path / "rows", 5, shard_rows=5, batch=5)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_room_is_asked_for_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(RunError, match="Input/output error; choose another folder, then run"):
        written(tmp_path / "rows", 5, shard_rows=5, batch=5)
