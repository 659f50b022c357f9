"""The command line as a user meets it: what it prints, refuses, and exits with."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest
import yaml

from chronomask import cli
from chronomask.data.folder import PreparedData
from chronomask.train import checkpoint

TINY_MODEL = {
    "kind": "config",
    "model_type": "bert",
    "overrides": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process; the outcome never holds a traceback."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["chronomask", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def config(tmp_path: Path, tiny_data: PreparedData) -> Path:
    values = {
        "data": str(tiny_data.path),
        "model": TINY_MODEL,
        "steps": 4,
        "rows_per_step": 4,
        "device": "cpu",
        "masking": {"ratio": {"kind": "cosine_decay"}, "content": {"kind": "ptw"}},
        "validation": {"rows": 8},
        "checkpoint": {"every": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("chronomask: ")
    assert len(outcome.err.strip().splitlines()) == 1
    for word in words:
        assert word in outcome.err


def test_every_command_explains_itself(run) -> None:
    assert "prepare" in run("--help").out
    for command in ("prepare", "pretrain", "report", "inspect", "quickstart"):
        outcome = run(command, "--help")
        assert outcome.code == 0
        assert "--out" in outcome.out


def test_pretrain_resume_and_report(run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = run("pretrain", config, "--out", out, "--quiet")
    assert outcome.code == 0, outcome.err
    assert "validation loss at 15 %" in outcome.out
    again = run("pretrain", "--out", out, "--resume", "--quiet")
    assert again.code == 0, again.err
    page = run("report", out, "--out", tmp_path / "report")
    assert page.code == 0, page.err
    assert (tmp_path / "report" / "report.html").is_file()
    assert json.loads((out / "summary.json").read_text())["complete"] is True


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("masking.ratio.kind=cosine_dcay", ["masking.ratio", "did you mean 'cosine_decay'"]),
        ("masking.ratio.bse=0.2", ["masking.ratio", "bse", "did you mean 'base'"]),
        ("masking.ratio.base=1.5", ["masking.ratio", "1.5", "less than or equal to 1"]),
        ("stepz=3", ["unknown key 'stepz'", "did you mean 'steps'"]),
        ("precision=fp31", ["precision", "did you mean 'fp32'"]),
        ("steps", ["not of the form"]),
        ("model.model_type=brt", ["brt", "bert"]),
        ("data=nowhere", ["nowhere"]),
    ],
)
def test_unknown_names_keys_and_values(run, config: Path, tmp_path: Path, override, words) -> None:
    outcome = run("pretrain", config, "--out", tmp_path / "run", "--set", override)
    refused(outcome, 2, *words)
    assert not (tmp_path / "run").exists()


def test_config_files_that_cannot_be(run, tmp_path: Path) -> None:
    refused(run("pretrain", tmp_path / "no.yaml", "--out", tmp_path / "r"), 2, "does not exist")
    (tmp_path / "bad.yaml").write_text("steps: [1,\n")
    refused_lines = run("pretrain", tmp_path / "bad.yaml", "--out", tmp_path / "r")
    assert refused_lines.code == 2
    assert "not valid YAML" in refused_lines.err
    refused(run("pretrain", "--out", tmp_path / "r"), 2, "give prepared data: --data DATA")


def test_training_without_held_out_rows(run, config: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text(PROSE * 60)
    assert run("prepare", source, "--out", tmp_path / "data", "--quiet", *PREPARE).code == 0
    outcome = run(
        "pretrain", config, "--data", tmp_path / "data", "--out", tmp_path / "run", "--quiet",
        "--set", "masking.content.kind=none",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "no held-out rows" in outcome.out


PREPARE = ("--set", "tagger.kind=none", "--set", "tokenizer.vocab_size=300", "--set", "held_out=0")
PROSE = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.\n"


def test_text_that_cannot_be(run, tmp_path: Path) -> None:
    out = tmp_path / "data"
    refused(run("prepare", tmp_path / "no.txt", "--out", out, *PREPARE), 2, "no.txt")
    refused(run("prepare", "--out", out), 2, "nothing to prepare")
    (tmp_path / "empty.txt").write_text("")
    refused(run("prepare", tmp_path / "empty.txt", "--out", out, *PREPARE), 1, "empty.txt")
    (tmp_path / "text.doc").write_text(PROSE)
    refused(run("prepare", tmp_path / "text.doc", "--out", out, *PREPARE), 2, ".doc")
    (tmp_path / "one.txt").write_text("a")
    assert run("prepare", tmp_path / "one.txt", "--out", out, *PREPARE).code == 1
    assert not (out / "manifest.json").exists()


def test_bad_documents_are_skipped_counted_and_named(run, tmp_path: Path) -> None:
    source = tmp_path / "mixed.txt"
    good = (PROSE * 40).encode()
    source.write_bytes(good + b"\n\nbroken \xff\xfe bytes\n\n" + b"x\n\n" + good)
    out = tmp_path / "data"
    outcome = run("prepare", source, "--out", out, "--quiet", *PREPARE)
    assert outcome.code == 0, outcome.err
    skipped = json.dumps(json.loads((out / "statistics.json").read_text())["skipped"])
    assert "mixed.txt" in skipped
    assert "UTF-8" in skipped


@pytest.mark.slow
def test_a_document_of_ten_megabytes(run, tmp_path: Path) -> None:
    source = tmp_path / "long.txt"
    source.write_text(PROSE.replace("\n", " ") * (10_000_000 // len(PROSE)) + "\n\n" + PROSE * 20)
    outcome = run("prepare", source, "--out", tmp_path / "data", "--quiet", *PREPARE)
    assert outcome.code == 0, outcome.err
    assert PreparedData.open(tmp_path / "data").split("train").num_tokens > 1_500_000


def test_a_truncated_row_file(run, config: Path, tmp_path: Path, tiny_data: PreparedData) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(tiny_data.path, data)
    victim = next((data / "train").glob("ids-*.npy"))
    victim.write_bytes(victim.read_bytes()[:-10])
    outcome = run("pretrain", config, "--data", data, "--out", tmp_path / "run")
    refused(outcome, 1, victim.name, "prepare")


def test_a_checkpoint_of_another_run(run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("pretrain", config, "--out", out, "--quiet").code == 0
    refused(run("pretrain", config, "--out", out), 2, "already holds a run", "--resume")
    other = run("pretrain", config, "--out", out, "--resume", "--set", "seed=5")
    assert other.code in (1, 2)
    assert "seed" in other.err


def test_a_full_disk_while_saving(
    run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    flush, calls = checkpoint.flush, []

    def full(path: Path) -> None:
        calls.append(path)
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(checkpoint, "flush", full)
    refused(
        run("pretrain", config, "--out", out, "--quiet"),
        1,
        "could not be saved",
        "intact (step-00000002)",
    )
    monkeypatch.undo()
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002"]
