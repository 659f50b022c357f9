"""Parquet and back gives the same folder, and nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from chronomask.data import parquet
from chronomask.data.folder import PreparedData
from chronomask.data.manifest import file_sha256, values_sha256
from chronomask.data.parquet import COLUMNS, export_parquet, import_parquet
from chronomask.data.writer import write_manifest
from chronomask.errors import DataError, UsageError
from tests.support.prepared_rows import FACTS, written


def several(folder: Path, num_rows: int = 23, shard_rows: int = 5) -> PreparedData:
    """Rows in several shards, beside a file that passes for a tokenizer."""
    splits = written(folder, num_rows, shard_rows, batch=7).manifest.splits
    file = folder / "tokenizer" / "tokenizer.json"
    file.parent.mkdir()
    file.write_text("{}")
    facts = {**FACTS, "tokenizer_sha256": file_sha256(file)}
    write_manifest(folder, facts, splits, ["tokenizer/tokenizer.json"])
    return PreparedData.open(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("name", ["rows.parquet", "folder"])
def test_a_round_trip_gives_every_byte_again(
    tiny_data: PreparedData, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "new" / name
    files = export_parquet(tiny_data, out)
    assert all(file.is_file() for file in files)
    again = import_parquet(out, tmp_path / "again")
    assert again.fingerprint == tiny_data.fingerprint
    assert files_of(again.path) == files_of(tiny_data.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "new"]


def test_a_name_of_another_format_is_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"give a name that ends in \.parquet, such as .*rows.parquet"
    ):
        export_parquet(tiny_data, tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())
    assert export_parquet(tiny_data, tmp_path / "rows.PARQUET") == [tmp_path / "rows.PARQUET"]
    assert import_parquet(tmp_path / "rows.PARQUET", tmp_path / "again").path.is_dir()


@pytest.mark.parametrize("name", ["rows.parquet", "folder"])
def test_several_shards_come_back(tmp_path: Path, name: str) -> None:
    data = several(tmp_path / "data")
    files = export_parquet(data, tmp_path / name)
    assert len(files) == (1 if name == "rows.parquet" else 5)
    again = import_parquet(tmp_path / name, tmp_path / "again")
    assert files_of(again.path) == files_of(data.path)


def test_datasets_opens_an_export(tiny_data: PreparedData, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    export_parquet(tiny_data, tmp_path / "out")
    opened = datasets.load_dataset(
        "parquet",
        data_files={s: str(tmp_path / "out" / f"{s}-*.parquet") for s in ("train", "held_out")},
        cache_dir=str(tmp_path / "cache"),
    )
    train = tiny_data.split("train")
    assert opened["train"].column_names == list(COLUMNS)
    assert opened["train"].num_rows == train.num_rows
    assert opened["held_out"].num_rows == tiny_data.split("held_out").num_rows
    rows, row = train.read(np.array([3])), opened["train"][3]
    assert row["input_ids"] == rows.input_ids[0].tolist()
    assert row["word_ids"] == rows.word_id[0].tolist()
    assert row["token_class"] == rows.token_class[0].tolist()
    assert row["special_tokens_mask"] == (rows.word_id[0] < 0).tolist()
    assert row["bounds"] == rows.cu_seqlens[1:-1].tolist()


def test_large_files_lie_beside_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = several(tmp_path / "data")
    table = data.path / "documents.parquet"
    table.write_bytes(b"PAR1" * 100)
    facts = {**FACTS, "tokenizer_sha256": data.manifest.tokenizer_sha256}
    write_manifest(data.path, facts, data.manifest.splits, ["tokenizer/tokenizer.json", table.name])
    data = PreparedData.open(data.path)
    monkeypatch.setattr(parquet, "_MOST_WITHIN", 100)
    with pytest.raises(UsageError, match=r"documents.parquet of .* too large .* name a folder"):
        export_parquet(data, tmp_path / "rows.parquet")
    export_parquet(data, tmp_path / "out")
    beside = tmp_path / "out" / "__files__" / table.name
    assert beside.read_bytes() == table.read_bytes()
    datasets.disable_progress_bars()
    opened = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert opened["train"].num_rows == pq.read_table(tmp_path / "out").num_rows == 23
    again = import_parquet(tmp_path / "out", tmp_path / "again")
    assert files_of(again.path) == files_of(data.path)
    beside.unlink()
    with pytest.raises(DataError, match=r"documents.parquet is missing: it belongs to the rows"):
        import_parquet(tmp_path / "out", tmp_path / "without")


def test_an_export_that_lacks_rows_is_refused(tmp_path: Path) -> None:
    data = several(tmp_path / "data")
    files = export_parquet(data, tmp_path / "out")
    files[2].unlink()
    with pytest.raises(DataError, match="are not those that were exported"):
        import_parquet(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_changed_rows_are_refused(tmp_path: Path) -> None:
    data = several(tmp_path / "data", 9, 9)
    (file,) = export_parquet(data, tmp_path / "rows.parquet")
    table = pq.read_table(file)
    pq.write_table(table.take(list(range(8, -1, -1))), file)
    with pytest.raises(DataError, match="are not those that were exported"):
        import_parquet(file, tmp_path / "again")


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    data = several(tmp_path / "data", 9, 9)
    with pytest.raises(UsageError, match="neither a Parquet file nor a folder"):
        import_parquet(tmp_path / "absent", tmp_path / "again")
    with pytest.raises(UsageError, match="exists"):
        export_parquet(data, tmp_path)
    (file,) = export_parquet(data, tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="exists"):
        import_parquet(file, tmp_path)
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(UsageError, match="not written by `chronomask data export`"):
        import_parquet(file, tmp_path / "again")
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(
        DataError, match=r"not a readable Parquet file .*: copy it again, or export"
    ):
        import_parquet(file, tmp_path / "again")


def test_files_of_two_exports_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for rows in (5, 9):
        data = several(tmp_path / f"data-{rows}", rows, 9)
        export_parquet(data, tmp_path / "out" / f"{rows}.parquet")
    with pytest.raises(UsageError, match="several exports"):
        import_parquet(tmp_path / "out", tmp_path / "again")


def described(
    source: Path, out: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    """An export whose description of the rows was changed, and the hash that fits it with it."""
    table = pq.read_table(source)
    metadata = dict(table.schema.metadata or {})
    description = json.loads(metadata[parquet._KEY])
    manifest = json.loads(description["manifest"])
    change(manifest, description["files"])
    manifest["values_sha256"] = values_sha256(manifest)
    description["manifest"] = json.dumps(manifest)
    metadata[parquet._KEY] = json.dumps(description).encode()
    pq.write_table(table.replace_schema_metadata(metadata), out)


def test_an_import_writes_nothing_outside_its_folder_and_leaves_nothing(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    """The description is its maker's, and so are the names in it."""
    export_parquet(tiny_data, tmp_path / "rows.parquet")
    outside = str(tmp_path / "victim")

    def rename_split(manifest: dict[str, Any], _: dict[str, Any], name: str) -> None:
        manifest["splits"][name] = manifest["splits"].pop("held_out")

    def name_file(_: dict[str, Any], files: dict[str, Any], name: str) -> None:
        files[name] = files["config.yaml"]

    def list_file(manifest: dict[str, Any], _: dict[str, Any], name: str) -> None:
        manifest["files"][0]["file"] = name

    def change_file(_: dict[str, Any], files: dict[str, Any], name: str) -> None:
        files["config.yaml"] = files["statistics.json"]

    def change_count(manifest: dict[str, Any], _: dict[str, Any], name: str) -> None:
        manifest["splits"]["train"]["shards"][0]["ids"]["bytes"] += 1

    cases = [
        (rename_split, ("../../victim", outside), "part of a file's name"),
        (name_file, ("../../victim", outside, "a/../../victim"), "outside its folder"),
        (list_file, ("../../victim", outside), "outside its folder"),
        (change_file, ("",), r"not those that were exported: config\.yaml; export .* again"),
        (change_count, ("",), r"not those that were exported: train/ids-00000\.npy"),
    ]
    for change, names, message in cases:
        for name in names:
            bad = tmp_path / "bad.parquet"
            described(tmp_path / "rows.parquet", bad, partial(change, name=name))
            with pytest.raises(DataError, match=message) as refused:
                import_parquet(bad, tmp_path / "in" / "data")
            assert "--force" not in str(refused.value)
            assert not list((tmp_path / "in").glob("*"))
            assert sorted(p.name for p in tmp_path.iterdir()) in (
                ["bad.parquet", "rows.parquet"], ["bad.parquet", "in", "rows.parquet"],
            )  # fmt: skip


def test_rows_without_a_column_are_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    export_parquet(tiny_data, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(table.drop_columns(["token_class"]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"are damaged \(.*\); export .* again"):
        import_parquet(tmp_path / "bad.parquet", tmp_path / "data")
    assert not (tmp_path / "data").exists()
