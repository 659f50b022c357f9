"""Machines that see one folder each prepare a share of it; together they make the same bytes."""

from __future__ import annotations

import fcntl
import json
import signal
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.errors import RunError, UsageError
from chronomask.locks import lock
from chronomask.prepare import executors, pipeline
from chronomask.prepare.config import LocalExecutor, PrepareConfig
from chronomask.prepare.executors import Share, Stage, run_stage
from chronomask.prepare.pipeline import prepare, prepare_share
from chronomask.prepare.work import mark, mark_file
from tests.support.corpus import made_up_text
from tests.support.forks import PREPARING, run_scripts
from tests.support.processes import HANG
from tests.support.reading import files


def config(folder: Path, **values: Any) -> PrepareConfig:
    """Every stage that needs all parts of the one before, on a text with documents that occur twice."""
    texts = made_up_text(120, seed=1)
    file = folder / "corpus.txt"
    if not file.exists():
        file.write_text("\n\n".join([*texts, *texts[:30]]), encoding="utf-8")
    base = {
        "sources": [str(file)],
        "tagger": {"kind": "frequency_bands", "num_bands": 4},
        "deduplication": {"kind": "exact"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "row_length": 32,
        "held_out": 0.1,
        "part_characters": 2000,
        "workers": 1,
    }
    return PrepareConfig.parse(base | values)


def whole(made: PrepareConfig, folder: Path) -> dict[str, bytes]:
    return files(prepare(made, folder / "whole", progress=False).path)


def command(made: PrepareConfig, out: Path, *more: str) -> list[str]:
    file = out.parent / "config.yaml"
    file.write_text(made.to_yaml())
    return ["prepare", "--config", str(file), "--out", str(out), "--quiet", *more]


@given(st.integers(1, 40), st.integers(0, 200))
def test_every_part_is_of_one_share(of: int, part: int) -> None:
    shares = [Share.parse(f"{number}/{of}") for number in range(1, of + 1)]
    assert sum(share.has(part) for share in shares) == 1


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "1/0", "a/b", "1/2/3", "-1/4", "²/4"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a share; give one such as 2/8"):
        Share.parse(text)


@pytest.mark.slow
def test_three_processes_and_one_twice(tmp_path: Path) -> None:
    made, out = config(tmp_path), tmp_path / "out"
    shares = ["1/3", "2/3", "3/3", "2/3"]
    group = [
        {"module": "chronomask", "arguments": command(made, out, "--only", share)}
        for share in shares
    ]
    answers = run_scripts(PREPARING, group)
    assert [answer["code"] for answer in answers] == [0, 0, 0, 0], answers
    said = [answer["out"] for answer in answers]
    assert all(f"share {share} is done" in text for share, text in zip(shares, said, strict=True))
    assert "so is every other; the command without --only finishes" in "".join(said)
    assert not (out / "manifest.json").exists()
    assert files(prepare(made, out, progress=False).path) == whole(made, tmp_path)


def test_one_share_after_the_other(tmp_path: Path) -> None:
    """What each has to find done, where the others have not begun, is done by the first."""
    made, out = config(tmp_path), tmp_path / "out"
    first = prepare_share(config(tmp_path, workers=2), out, Share(1, 2), progress=False)
    parts = len(list((out / ".work").glob("text-*")))
    assert parts > 5
    assert first == parts // 2
    assert len(list((out / ".work").glob("sign-*"))) == parts
    assert prepare_share(made, out, Share(2, 2), progress=False) == 0
    assert files(prepare(made, out, progress=False).path) == whole(made, tmp_path)
    assert prepare_share(made, out, Share(2, 2), progress=False) == 0  # long finished
    with pytest.raises(UsageError, match="another config: row_length"):
        prepare_share(config(tmp_path, row_length=64), out, Share(1, 2), progress=False)


def test_the_whole_command_does_what_no_share_did(tmp_path: Path) -> None:
    made, out = config(tmp_path), tmp_path / "out"
    prepare_share(made, out, Share(2, 5), progress=False)
    assert files(prepare(made, out, progress=False).path) == whole(made, tmp_path)


@pytest.mark.slow
def test_a_killed_share_goes_on(tmp_path: Path) -> None:
    made, out = config(tmp_path), tmp_path / "out"
    share = command(made, out, "--only", "1/2")
    killed = [
        [{"module": "tests.support.killed_command", "arguments": [name, number, *share]}]
        for name, number in (
            ("gathered", "1"), ("sign-", "2"), ("deduplicated", "1"), ("tokenizer", "1"), ("annotate-", "2"),
        )
    ]  # fmt: skip
    answers = run_scripts(PREPARING, *killed)
    assert [answer["code"] for answer in answers] == [-signal.SIGKILL] * 5, answers
    (annotated,) = (out / ".work").glob("annotate-*")
    when = annotated.stat().st_mtime_ns
    prepare_share(made, out, Share(1, 2), progress=False)
    assert annotated.stat().st_mtime_ns == when
    assert prepare_share(made, out, Share(2, 2), progress=False) == 0
    assert files(prepare(made, out, progress=False).path) == whole(made, tmp_path)


def test_shares_and_a_whole_preparation_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = config(tmp_path), tmp_path / "out"
    monkeypatch.setattr(pipeline, "_SECONDS_TO_BEGIN", 0)
    out.mkdir()
    with (
        lock(out / ".lock"),
        pytest.raises(UsageError, match="another process is preparing"),
    ):
        prepare_share(made, out, Share(1, 2), progress=False)
    prepare_share(made, out, Share(1, 2), progress=False)
    with lock(out / ".lock", together=True):  # a share that is still at it
        with pytest.raises(UsageError, match="another process is preparing"):
            prepare(made, out, progress=False)
        with pytest.raises(UsageError, match="other shares began: row_length is 32 there, 64 here"):
            prepare_share(config(tmp_path, row_length=64), out, Share(2, 2), progress=False)
        assert prepare_share(made, out, Share(2, 2), progress=False) == 0


def test_a_share_never_throws_away_what_shares_of_another_config_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else is at it, but what the first share did took it hours."""
    made, out = config(tmp_path), tmp_path / "out"
    prepare_share(made, out, Share(1, 2), progress=False)
    done = files(out)
    with pytest.raises(UsageError, match=r"row_length is 32 there, 64 here; .*anew with --force"):
        prepare_share(config(tmp_path, row_length=64), out, Share(2, 2), progress=False)
    assert files(out) == done
    text = tmp_path / "corpus.txt"
    text.write_text(text.read_text(encoding="utf-8") + "\n\nOne more.", encoding="utf-8")
    with pytest.raises(UsageError, match=r"the sources or the tokenizer .* \(changed: .*txt\)"):
        prepare_share(made, out, Share(2, 2), progress=False)
    assert files(out) == done
    # A whole preparation goes over it, and says so unless it was told to.
    assert "thrown away" not in caplog.text
    assert prepare(config(tmp_path, row_length=64), out, progress=False).row_length == 64
    assert f"{out} is thrown away: row_length is 32 there, 64 here" in caplog.text


def test_what_another_version_began_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have read the text by other rules, and kept other counts of it."""
    made, out = config(tmp_path), tmp_path / "out"
    prepare_share(made, out, Share(1, 2), progress=False)
    mark = out / ".work" / "state.json"
    state = json.loads(mark.read_text())
    del state["work_format"]  # as versions up to 0.2 had it
    mark.write_text(json.dumps(state, sort_keys=True))
    with pytest.raises(UsageError, match=r"another version of chronomask began it; .*--force"):
        prepare_share(made, out, Share(2, 2), progress=False)
    prepare(made, out, progress=False)
    assert f"{out} is thrown away: another version of chronomask began it" in caplog.text
    prepare(made, tmp_path / "again", progress=False)
    assert files(out) == files(tmp_path / "again")


def note(work: Path, number: int) -> None:
    """A task that does nothing."""
    mark(work, "note", number, None)


def test_a_part_that_another_machine_has_in_hand_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_SECONDS_BETWEEN_LOOKS", 0.01)
    stage = Stage("note", tmp_path, note, shared=True)
    done: list[int] = []
    looked = Event()
    claimed = Stage.is_claimed
    monkeypatch.setattr(
        Stage, "is_claimed", lambda of, number: claimed(of, number) and (looked.set() or True)
    )
    runs = Thread(target=run_stage, args=(stage, range(4), 1, LocalExecutor(), done.append))
    with stage.claim(2) as mine:
        assert mine
        runs.start()
        assert looked.wait(HANG)  # it has nothing else to do
        assert sorted(done) == [0, 1, 3]
        assert not mark_file(tmp_path, "note", 2).exists()
    runs.join(HANG)
    assert sorted(done) == [0, 1, 2, 3]
    assert mark_file(tmp_path, "note", 2).exists()


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(37, "No locks available")

    made = config(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"cannot be locked \(No locks available\)"):
        prepare_share(made, tmp_path / "out", Share(1, 2), progress=False)


def test_force_and_shares_exclude_each_other(tmp_path: Path) -> None:
    of = command(config(tmp_path), tmp_path / "out", "--only", "1/2", "--force")
    result = CliRunner().invoke(app, of)
    assert isinstance(result.exception, UsageError)
    assert "--force does not go with --only" in str(result.exception)
    assert not (tmp_path / "out").exists()
