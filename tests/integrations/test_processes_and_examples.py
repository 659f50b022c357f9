"""Whole scripts in processes of their own: two ranks against one, and every example."""

from __future__ import annotations

import ast
import runpy
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import chronomask as cm
from tests.support import two_processes
from tests.support.forks import TRAINING, run_scripts

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


SAYS = {
    "trainer.py": "loss at 15 %",
    "lightning_module.py": "loss at 15 %",
    "plain_loop.py": "step 50",
    "mask_in_workers.py": "step 60",
    "train.py": "held-out loss at 15 %",
}


@dataclass(frozen=True)
class Scripts:
    """What examples printed, by name; the folders where they, and the Trainer's one and two ranks, ran."""

    printed: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    folder = tmp_path_factory.mktemp("scripts")
    for name in (*SAYS, "one", "two"):
        (folder / name).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        {
            "module": "tests.support.two_processes",
            "arguments": [str(folder / "two"), "4"],
            "env": world | {"RANK": rank, "LOCAL_RANK": rank},
            "cwd": str(folder),
        }
        for rank in ("0", "1")
    ]
    examples = [[{"script": str(EXAMPLES / n), "cwd": str(folder / n)}] for n in SAYS]
    answers = run_scripts(TRAINING, ranks, *examples)
    assert [answer["err"][-3000:] for answer in answers if answer["code"]] == []
    printed = [answer["out"] for answer in answers[2:]]
    return Scripts(dict(zip(SAYS, printed, strict=True)), folder)


def test_two_ranks_of_the_trainer_equal_one(scripts: Scripts) -> None:
    one, two = scripts.folder / "one", scripts.folder / "two"
    two_processes.main(one, 8)
    alone = torch.load(one / "seen-0.pt", weights_only=True)
    ranks = [torch.load(two / f"seen-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(alone["inputs"], torch.cat([rank["inputs"] for rank in ranks], dim=1))
    assert ranks[0]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for name, value in alone["state"].items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
        torch.testing.assert_close(ranks[0]["state"][name], value, rtol=1e-5, atol=0)
    # A stream's rows are divided as they come.
    assert ranks[0]["stream"]["loss"] == pytest.approx(alone["stream"]["loss"], rel=1e-5)
    # Streams of shards do not wait for one another, and what fills their last batches up is not counted.
    assert alone["shards"].keys() == {
        "steps", "eval_held_out_loss", "eval_few_loss", "eval_list_loss",
    }  # fmt: skip
    for rank in ranks:
        assert rank["shards"] == pytest.approx(alone["shards"], rel=1e-6)
    # Also where rows are of two kinds, masks enter late and log² Z is minimised.
    one, others = alone["own"], [rank["own"] for rank in ranks]
    assert others[0]["loss"] == pytest.approx(one["loss"], rel=1e-4)
    # Ratios that are logged are those of all processes.
    for ratios, expected in (
        (ranks[0]["ratios"], alone["ratios"]),
        (others[0]["ratios"], one["ratios"]),
    ):
        torch.testing.assert_close(torch.tensor(ratios), torch.tensor(expected))
    for name, value in one["state"].items():
        assert torch.equal(others[0]["state"][name], others[1]["state"][name])
        torch.testing.assert_close(others[0]["state"][name], value, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SAYS)
def test_examples_run_at_their_defaults(scripts: Scripts, name: str) -> None:
    assert SAYS[name] in scripts.printed[name]


def test_a_whole_training_goes_on_where_it_stopped(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, folder = EXAMPLES / "train.py", scripts.folder / "train.py"
    out = folder / "train_output"
    whole = scripts.printed["train.py"].splitlines()
    assert whole[-1].startswith("held-out loss at 15 %")
    (out / "state.pt").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(EXAMPLES)
    main = runpy.run_path(str(script))["main"]
    main(stop="25")  # the state of step 20 is saved
    capsys.readouterr()
    main()
    resumed = capsys.readouterr().out.splitlines()
    assert resumed == whole[2:]
    assert resumed[0].startswith("step 30: ratio 0.227")
    AutoModelForMaskedLM.from_pretrained(out / "model")


def test_examples_use_only_the_face() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 6
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 80, script.name
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("chronomask"), script.name
            if isinstance(node, ast.Import):
                names = [alias for alias in node.names if alias.name.startswith("chronomask")]
                assert all((a.name, a.asname) == ("chronomask", "cm") for a in names), script.name
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cm":
                assert node.attr in cm.__all__, f"{script.name}: cm.{node.attr}"
