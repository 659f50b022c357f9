"""The whole preparation: the same bytes however it runs, and nothing half-done taken for whole."""

from __future__ import annotations

import json
import lzma
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask import storage
from chronomask.data.folder import PreparedData
from chronomask.data.loader import validation_batches
from chronomask.errors import DataError, RunError, UsageError
from chronomask.prepare import output, pipeline
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.executors import Share, Stage, run_task
from chronomask.prepare.pipeline import prepare, prepare_share
from chronomask.prepare.rows.annotate import Annotator
from chronomask.prepare.work import hash_position
from tests.support.corpus import made_up_text
from tests.support.processes import python_path
from tests.support.reading import files, tiny_config


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(made_up_text(80, seed=1)), encoding="utf-8")
    return file


def run(made: PrepareConfig, out: Path, **values: Any) -> PreparedData:
    return prepare(made, out, progress=False, **values)


@pytest.mark.parametrize("packing", ["concatenate", "documents"])
def test_any_number_of_workers_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, packing: str
) -> None:
    override = f"packing.kind={packing}"
    one = run(tiny_config(corpus, override), tmp_path / "one")
    two = run(tiny_config(corpus, override, "workers=2"), tmp_path / "two")
    assert files(one.path) == files(two.path)
    one.verify()


def test_parts_do_not_change_the_rows(corpus: Path, tmp_path: Path) -> None:
    small = run(tiny_config(corpus, "part_characters=1000"), tmp_path / "small")
    large = run(tiny_config(corpus, "part_characters=1000000"), tmp_path / "large")
    assert small.fingerprint == large.fingerprint


def test_every_document_is_in_exactly_one_split(corpus: Path, tmp_path: Path) -> None:
    data = run(tiny_config(corpus), tmp_path / "out")
    texts = made_up_text(80, seed=1)
    held_out = sum(hash_position(text) < 0.1 for text in texts)
    assert data.split("held_out").num_documents == held_out > 0
    assert data.split("train").num_documents == 80 - held_out
    assert data.manifest.class_names == ("none",)
    assert data.statistics["documents"] == 80
    assert data.statistics["splits"]["train"]["row_utilisation"] > 0.99


def test_the_rows_spell_the_documents(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data = run(tiny_config(corpus, "packing.kind=documents", "row_length=512"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(str(data.tokenizer_path))
    expected = {text.lower() for text in made_up_text(80, seed=1)}
    found = set()
    for name in ("train", "held_out"):
        for rows in validation_batches(data.split(name), 10**6, 16):
            flat = rows.input_ids.ravel()
            for start, stop in zip(rows.cu_seqlens, rows.cu_seqlens[1:], strict=False):
                found.add(tokenizer.decode(flat[start:stop], skip_special_tokens=True))
    assert {"".join(text.split()) for text in found if text} == {
        "".join(t.split()) for t in expected
    }


def test_held_out_documents_stay_when_files_are_added(corpus: Path, tmp_path: Path) -> None:
    first = run(tiny_config(corpus), tmp_path / "a").split("held_out").num_documents
    more = tmp_path / "more.txt"
    texts = made_up_text(40, seed=2)
    more.write_text("\n\n".join(texts))
    both = run(tiny_config(corpus, sources=[str(corpus), str(more)]), tmp_path / "b")
    added = sum(hash_position(text) < 0.1 for text in texts)
    assert both.split("held_out").num_documents == first + added


def test_a_finished_folder_is_reused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = run(tiny_config(corpus), out)
    monkeypatch.setattr(pipeline, "gather", None)  # calling it would fail
    assert run(tiny_config(corpus, "workers=7"), out).fingerprint == first.fingerprint
    with pytest.raises(
        UsageError, match=r"another config: row_length is 32 there, 64 here.*--force"
    ):
        run(tiny_config(corpus, "row_length=64"), out)
    corpus.write_text("other text")
    with pytest.raises(UsageError, match=r"sources have changed.*\(changed: .*txt\); .*--force"):
        run(tiny_config(corpus), out)


def test_files_that_differ_from_those_prepared_are_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("texts")
    folder.mkdir()
    for k in range(6):
        (folder / f"{k}.txt").write_text(corpus.read_text())
    run(tiny_config(folder), tmp_path / "out")
    for k in (0, 1, 2, 3):
        (folder / f"{k}.txt").rename(folder / f"{k}-new.txt")
    (folder / "5.txt").write_text("other text")
    named = {
        what: ", ".join(str(folder / f"{k}{end}.txt") for k in (0, 1, 2))
        for what, end in (("new", "-new"), ("gone", ""))
    }
    told = f"(new: {named['new']}, …; gone: {named['gone']}, …; changed: {folder / '5.txt'})"
    with pytest.raises(UsageError, match=re.escape(told)):
        run(tiny_config(folder), tmp_path / "out")


def test_force_prepares_again(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny_config(corpus), out)
    (out / "mine.txt").write_text("stays")
    assert run(tiny_config(corpus, "row_length=64"), out, force=True).row_length == 64
    assert (out / "mine.txt").read_text() == "stays"


def test_a_folder_of_something_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    with pytest.raises(UsageError, match="is not prepared data"):
        run(tiny_config(corpus), tmp_path / "out")
    with pytest.raises(UsageError, match="goes into a folder"):
        run(tiny_config(corpus), corpus)
    (tmp_path / "other" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match="is not prepared data"):
        run(tiny_config(corpus), tmp_path / "other", force=True)
    assert (tmp_path / "other" / "train").is_dir()


def test_folders_of_other_programs_with_names_of_ours_are_left_alone(
    corpus: Path, tmp_path: Path
) -> None:
    extension, project = tmp_path / "extension", tmp_path / "project"
    for folder in (extension, project):
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "labels.csv").write_text("stays")
        (folder / "config.yaml").write_text("stays: true")
    (extension / "manifest.json").write_text('{"name": "my extension"}')
    (project / ".work").mkdir()
    for folder in (extension, project):
        before = files(folder)
        for force in (False, True):
            with pytest.raises(UsageError, match="is not prepared data; choose another --out"):
                run(tiny_config(corpus), folder, force=force)
        assert files(folder) == before


def test_a_damaged_folder_is_known_and_replaced(corpus: Path, tmp_path: Path) -> None:
    made, out = tiny_config(corpus), tmp_path / "out"
    whole = files(run(made, out).path)
    for content in ("", '{"schema_version": 1, "finger'):
        (out / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=r"not a readable manifest .*--force"):
            run(made, out)
        assert files(run(made, out, force=True).path) == whole


@pytest.mark.parametrize("step", ["write", "rmtree"])
def test_a_removal_that_was_interrupted_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between the old data and the new there is a moment with neither manifest nor state."""
    out = tmp_path / "out"
    run(tiny_config(corpus), out)
    (out / "mine.txt").write_text("stays")

    def stops(*args: Any, **values: Any) -> Any:
        raise KeyboardInterrupt

    if step == "write":
        monkeypatch.setattr(output, "write_text", stops)
    else:
        monkeypatch.setattr(storage.shutil, "rmtree", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(corpus), out, force=True)
    monkeypatch.undo()
    assert run(tiny_config(corpus, "row_length=64"), out, force=True).row_length == 64
    assert (out / "mine.txt").read_text() == "stays"


def test_links_to_folders_elsewhere_are_removed_and_not_followed(
    corpus: Path, tmp_path: Path
) -> None:
    """Someone moved the shards, and the files of the work, to another disk."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    run(tiny_config(corpus), out)
    (out / "train").rename(elsewhere)
    (out / "train").symlink_to(elsewhere)
    (out / ".work").symlink_to(tmp_path / "work")
    (tmp_path / "work").mkdir()
    there = sorted(path.name for path in elsewhere.iterdir())
    assert run(tiny_config(corpus, "row_length=64"), out, force=True).row_length == 64
    assert not (out / "train").is_symlink()
    assert not (out / ".work").exists()
    assert sorted(path.name for path in elsewhere.iterdir()) == there


def test_a_preparation_killed_before_it_wrote_anything_goes_on(
    corpus: Path, tmp_path: Path
) -> None:
    work = tmp_path / "out" / ".work"
    work.mkdir(parents=True)
    (work.parent / ".lock").touch()
    (work / ".state.json.writing").write_text("{")
    assert run(tiny_config(corpus), work.parent).row_length == 32


@pytest.mark.parametrize(
    "stage", ["gather", "open_saved", "run_stage", "write_split", "write_manifest"]
)
def test_an_interrupted_preparation_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = run(tiny_config(corpus), tmp_path / "whole")
    real = getattr(pipeline, stage)

    def stops(*args: Any, **values: Any) -> Any:
        real(*args, **values)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    if stage == "write_manifest":
        stops = lambda *args, **values: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(pipeline, stage, stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(corpus), out)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="did not finish, and the same command continues"):
        PreparedData.open(out)
    assert files(run(tiny_config(corpus), out).path) == files(whole.path)


def test_finished_parts_are_not_done_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    real = Annotator.annotate

    def counting(*args: Any) -> Any:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(Annotator, "annotate", counting)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(corpus), out)
    parts = len(list((out / ".work").glob("text-*")))
    run(tiny_config(corpus), out)
    assert len(done) == parts + 1


def test_another_config_starts_afresh(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*args: Any) -> Any:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(pipeline, "write_manifest", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(corpus), out)
    monkeypatch.undo()
    made = run(tiny_config(corpus, "tokenizer.vocab_size=200"), out)
    assert files(made.path) == files(
        run(tiny_config(corpus, "tokenizer.vocab_size=200"), tmp_path / "b").path
    )


def part_as_step(data: Any = None, rank: int = 0, world_size: int = 1, *, stage: Stage) -> Any:
    yield run_task(stage, rank)


def test_parts_run_as_a_datatrove_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from datatrove.executor import LocalPipelineExecutor

    def by_datatrove(stage: Stage, numbers: list[int], *_: Any) -> None:
        step = partial(part_as_step, stage=stage)
        LocalPipelineExecutor([step], len(numbers), 1, logging_dir=str(tmp_path / "log")).run()

    whole = run(tiny_config(corpus), tmp_path / "whole")
    monkeypatch.setattr(pipeline, "run_stage", by_datatrove)
    assert files(run(tiny_config(corpus), tmp_path / "out").path) == files(whole.path)


def test_documents_of_every_size(tmp_path: Path) -> None:
    long = ("extraordinarily " * 40 + "\n") * 16_000  # 10 MB
    file = tmp_path / "sizes.txt.xz"
    file.write_bytes(
        lzma.compress("\n\n".join(["x", long.strip(), "yz", *made_up_text(20)]).encode(), preset=0)
    )
    data = run(
        tiny_config(file, "held_out=0.0", "tokenizer_sample_characters=20000"), tmp_path / "out"
    )
    skipped = data.statistics["skipped"]
    told = {"count": 1, "bytes": 1, "unit": "documents", "names": [f"{file}:0"]}
    assert skipped == {"fewer than 2 characters": told}
    assert data.split("train").num_documents == 22
    assert data.split("held_out").num_rows == 0
    assert data.split("train").num_tokens > 640_000


def test_documents_without_a_token_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": t}) for t in ["\u200b\u200b\u200b", *made_up_text(20)])
    )
    data = run(tiny_config(file), tmp_path / "out")
    told = {"count": 1, "bytes": 9, "unit": "documents", "names": [f"{file}:0"]}
    assert data.statistics["skipped"] == {"no token": told}


@pytest.mark.parametrize("texts", [["one two three"], ["one two", "three four"], ["same", "same"]])
def test_tiny_corpora_train_on_something(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    data = run(tiny_config(tmp_path / "a.txt", "held_out=0.001"), tmp_path / "out")
    assert data.split("train").num_rows == 1
    assert data.split("held_out").num_rows == (1 if len(set(texts)) > 1 else 0)


def test_sources_without_a_document_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n\n\xff\xff\n\nx\n")
    with pytest.raises(
        DataError, match=r"no document in .*a\.txt \(skipped: 1 × invalid UTF-8; 1 × fewer"
    ):
        run(tiny_config(tmp_path / "a.txt"), tmp_path / "out")


def test_a_refusal_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a folder that was not there, nor a part of a preparation in one that was."""
    empty, own = tmp_path / "empty.txt", tmp_path / "own"
    empty.write_bytes(b"\n\n\xff\xff\n\nx\n")
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"body": "one two three"}\n')
    tokenizer = run(tiny_config(corpus), tmp_path / "good").tokenizer_path
    missing = "tagger={kind: spacy, name: xx_none_news_sm}"
    given = f"tokenizer={{kind: folder, path: {tokenizer}}}"
    own.mkdir()
    for source, *overrides in (
        (corpus, missing),
        (corpus, "tagger={kind: spacy, name: tlh}"),
        (corpus, missing, given),
        (empty, "min_characters=3"),
        (lines,),
        (lines, given),
    ):
        for out in (tmp_path / "out", own):
            with pytest.raises((UsageError, DataError)):
                run(tiny_config(source, *overrides), out)
        assert not (tmp_path / "out").exists()
        assert list(own.iterdir()) == []
    with pytest.raises(UsageError, match="is not installed"):
        prepare_share(tiny_config(corpus, missing), tmp_path / "out", Share(1, 2), progress=False)
    assert not (tmp_path / "out").exists()
    run(tiny_config(corpus), tmp_path / "out").verify()
    assert "unfinished" not in caplog.text


def test_data_that_are_to_be_replaced_stay_where_the_tagger_is_refused(
    corpus: Path, tmp_path: Path
) -> None:
    before = files(run(tiny_config(corpus), tmp_path / "out").path)
    missing = tiny_config(corpus, "tagger={kind: spacy, name: xx_none_news_sm}")
    with pytest.raises(UsageError, match="is not installed"):
        run(missing, tmp_path / "out", force=True)
    assert files(tmp_path / "out") == before


def test_a_full_disk_is_reported(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        run(tiny_config(corpus), tmp_path / "out")
    monkeypatch.undo()
    run(tiny_config(corpus), tmp_path / "out").verify()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tagger.kind=englsh", r"tagger\.kind is 'englsh'; did you mean 'english'"),
        ("tokenizer.kind=bpe", "tokenizer.kind is 'bpe'"),
        ("packing.kind=concat", "did you mean 'concatenate'"),
        (
            "packing=document",
            r"expected a group of keys with a 'kind'; did you mean 'documents'\? Valid: concatenate",
        ),
        ("packing=[]", r"expected a group of keys with a 'kind'; valid: concatenate, documents"),
        ("row_lenght=3", "unknown key 'row_lenght'; did you mean 'row_length'"),
        ("row_length=3", "row_length is 3"),
        ("held_out=0.9", "held_out is 0.9"),
        ("sources=[]", "sources"),
    ],
)
def test_unknown_values_are_refused_at_once(corpus: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(corpus, override)


def test_a_config_needs_none_of_the_libraries_that_prepare() -> None:
    heavy = (
        "torch transformers tokenizers spacy pyarrow numba zstandard datatrove sentencepiece ray"
    )
    code = f"import sys, chronomask.prepare.config; print(set(sys.modules) & set({heavy.split()}))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": python_path()}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "set()\n"


def test_a_config_survives_yaml(corpus: Path, tmp_path: Path) -> None:
    made = tiny_config(
        corpus, sources=[str(corpus), {"kind": "installed_packages", "max_bytes": 5000}]
    )
    (tmp_path / "a.yaml").write_text(made.to_yaml())
    assert PrepareConfig.load(tmp_path / "a.yaml") == made


@pytest.mark.slow
def test_the_bundled_tagger_gives_every_word_a_class(tmp_path: Path) -> None:
    text = "The old man doesn't like New York. Naïve cafés cost €3.50!\n\nShe sells sea shells."
    (tmp_path / "a.txt").write_text(text)
    data = run(tiny_config(tmp_path / "a.txt", "tagger.kind=english"), tmp_path / "out")
    rows = data.split("train").read(np.arange(1))
    assert data.class_names[0] == "none"
    assert len(data.class_names) == 18
    assert (rows.token_class[rows.word_id >= 0] > 0).all()
    assert data.statistics["tokens_without_word"] == 0


def test_too_little_held_out_is_warned_of(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny_config(corpus), tmp_path / "few")
    assert "the losses of a validation are largely chance" in caplog.text
    caplog.clear()
    run(tiny_config(corpus, "held_out=0"), tmp_path / "none")
    assert "largely chance" not in caplog.text
