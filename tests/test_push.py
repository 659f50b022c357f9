"""``chronomask push``: what goes up, to which branch, and what never does; against a hub in a folder."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers import RemBertTokenizer

from chronomask.cli import main
from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, RunError, UsageError
from chronomask.push import plan_push, push
from tests.support.tiny_run import tiny_run


class FolderHub:
    """Stands in for ``HfApi``, whose signatures it checks: a branch is a folder."""

    def __init__(self, root: Path, *, public: bool = False, stops_at: int | None = None) -> None:
        self.root, self.private = root, None if not public else False
        self.commits, self.stops_at = 0, stops_at

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            bound = inspect.signature(getattr(HfApi, name)).bind(self, *given, **named)
            return getattr(self, f"_{name}")(bound.arguments)

        return call

    def _whoami(self, _: dict[str, Any]) -> dict[str, str]:
        return {"name": "owner"}

    def _create_repo(self, asked: dict[str, Any]) -> str:
        if self.private is None:
            self.private = bool(asked["private"])
        return f"https://hub.example/{asked['repo_id']}"

    def _repo_info(self, _: dict[str, Any]) -> Any:
        return SimpleNamespace(private=self.private)

    def _list_repo_commits(self, _: dict[str, Any]) -> list[Any]:
        return [SimpleNamespace(commit_id="newest"), SimpleNamespace(commit_id="first")]

    def _create_branch(self, asked: dict[str, Any]) -> None:
        assert asked["exist_ok"]
        branch = self.root / asked["branch"]
        if not branch.exists():
            branch.mkdir(parents=True)
            if asked["revision"] != "first" and (self.root / "main").exists():
                shutil.copytree(self.root / "main", branch, dirs_exist_ok=True)

    def _list_repo_files(self, asked: dict[str, Any]) -> list[str]:
        return [path.name for path in (self.root / asked["revision"]).glob("*")]

    def _create_commit(self, asked: dict[str, Any]) -> None:
        self.commits += 1
        if self.commits == self.stops_at:
            raise ConnectionError("gone")
        branch = self.root / asked["revision"]
        branch.mkdir(parents=True, exist_ok=True)
        for operation in asked["operations"]:
            target = branch / operation.path_in_repo
            if isinstance(operation, CommitOperationDelete):
                target.unlink()
            else:
                shutil.copy(operation.path_or_fileobj, target)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: PreparedData) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"), tiny_data)


MODEL_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_newest_model_goes_up_with_its_card_alone(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(max((run / "checkpoints").iterdir()) / "transformers", model)
    for name in (
        ".env",
        "token",
        "optimiser.safetensors",
        "training_args.bin",
        "rows.npy",
        "run.py",
    ):
        (model / name).write_text("secret")
    (model / "data").mkdir()
    (model / "data" / "config.json").write_text("{}")
    uploads = plan_push(model)
    assert push(uploads, "owner/name", api=FolderHub(tmp_path / "hub")).endswith("owner/name")
    assert files_in(tmp_path / "hub") == {"main"}
    assert files_in(tmp_path / "hub" / "main") >= MODEL_FILES
    told = str(uploads[0])
    assert "model.safetensors  " in told
    for name in files_in(model) - files_in(tmp_path / "hub" / "main"):
        assert name in told.partition("not uploaded:")[2]
    assert {"data", ".env", "optimiser.safetensors"} <= set(uploads[0].left_out)


def test_checkpoints_become_branches(run: Path, tmp_path: Path) -> None:
    steps = files_in(run / "checkpoints")
    assert len(steps) > 1
    uploads = plan_push(run, revisions=True)
    assert [each.revision for each in uploads] == [*sorted(steps), "main"]
    push(uploads, "owner/name", private=True, api=FolderHub(tmp_path))
    assert files_in(tmp_path) == steps | {"main"}
    newest, main = (tmp_path / name / "model.safetensors" for name in (max(steps), "main"))
    assert newest.read_bytes() == main.read_bytes()
    assert newest.read_bytes() != (tmp_path / min(steps) / "model.safetensors").read_bytes()


def test_an_interrupted_push_leaves_no_branch_with_another_model(run: Path, tmp_path: Path) -> None:
    steps = sorted(files_in(run / "checkpoints"))
    push(plan_push(run), "owner/name", api=FolderHub(tmp_path))
    uploads = plan_push(run, revisions=True)
    with pytest.raises(RunError, match="the same command continues"):
        push(uploads, "owner/name", api=FolderHub(tmp_path, stops_at=2))
    assert files_in(tmp_path / steps[0]) >= MODEL_FILES
    assert not files_in(tmp_path / steps[1])
    push(uploads, "owner/name", api=FolderHub(tmp_path))
    for upload in uploads:
        weights = tmp_path / upload.revision / "model.safetensors"
        assert weights.read_bytes() == (upload.folder / "model.safetensors").read_bytes()


def test_files_of_an_earlier_model_go_and_the_owners_stay(run: Path, tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    theirs = {".gitattributes", "LICENSE", "eval.json", "figure.png"}
    stale = {"vocab.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    for name in theirs | stale | {"config.json"}:
        (main / name).write_text("theirs")
    push(plan_push(run), "owner/name", api=FolderHub(tmp_path))
    assert files_in(main) >= theirs | MODEL_FILES
    assert not files_in(main) & stale
    assert (main / "config.json").read_text() != "theirs"


def test_a_folder_of_adapt_stands_for_its_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(max((run / "checkpoints").iterdir()) / "transformers", out / "model")
    (out / "run").symlink_to(run)
    assert plan_push(out)[-1].folder == out / "model"
    assert len(plan_push(out, revisions=True)) == 1 + len(files_in(run / "checkpoints"))


def test_what_cannot_be_is_refused(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(max((run / "checkpoints").iterdir()) / "transformers", model)
    uploads = plan_push(model)
    with pytest.raises(UsageError, match="is public"):
        push(uploads, "owner/name", private=True, api=FolderHub(tmp_path / "hub", public=True))
    assert not (tmp_path / "hub").exists()
    for name in ("name", "a/b/c", "owner/../x", "https://hub.example/a", "-o/x", "owner/na me"):
        with pytest.raises(UsageError, match="give owner/name"):
            push(uploads, name, api=FolderHub(tmp_path / "hub"))
    with pytest.raises(UsageError, match="is no run"):
        plan_push(model, revisions=True)
    with pytest.raises(UsageError, match="does not exist"):
        plan_push(tmp_path / "gone")
    (model / "README.md").unlink()
    with pytest.raises(UsageError, match="not published without a card"):
        plan_push(model)
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(DataError, match="has no tokenizer"):
        plan_push(model)


def test_files_that_the_tokenizers_class_reads_go_up(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(max((run / "checkpoints").iterdir()) / "transformers", model)
    (model / "sentencepiece.model").write_text("what RemBERT's tokenizer reads")
    assert "sentencepiece.model" in plan_push(model)[0].left_out
    RemBertTokenizer().save_pretrained(model)
    assert "sentencepiece.model" in plan_push(model)[0].files


def answered(status: int, said: str | None = None) -> HfHubHTTPError:
    """The error that huggingface_hub makes of an answer of the hub."""
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"\nError {status}\nmore", response=response, server_message=said)


@pytest.mark.parametrize(
    ("error", "kind", "match"),
    [
        (LocalTokenNotFoundError("no"), UsageError, "hf auth login"),
        (OfflineModeIsEnabled("no"), UsageError, "HF_HUB_OFFLINE is set"),
        (ConnectionError("\nno route\nto host"), RunError, "ConnectionError: no route; where"),
        (
            answered(403, "not of this group"),
            RunError,
            "403.: not of this group; check that the name is",
        ),
        (
            answered(404),
            RunError,
            r"owner/name \(status 404\): Error 404; check that the name is yours",
        ),
        (answered(401, "no"), RunError, r"status 401.: no; log in once more with  hf auth login"),
        (answered(429), RunError, "429.*wait some minutes, and the same command continues$"),
        (answered(500), RunError, "500.*the same command continues, when the hub takes it$"),
        (answered(412), RunError, "412.*the same command continues, when the hub takes it$"),
    ],
)
def test_a_hub_that_does_not_take_it(
    error: Exception, kind: type[Exception], match: str, run: Path, tmp_path: Path
) -> None:
    hub = FolderHub(tmp_path)

    def fail(_: Any) -> None:
        raise error

    hub._whoami = fail  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(kind, match=match):
        push(plan_push(run), "owner/name", api=hub)


def test_the_command_says_what_it_would_upload(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("asked"))
    monkeypatch.setattr(sys, "argv", ["chronomask", "push", str(run), "owner/name", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("main: ")
    assert "uploaded" not in told
    assert "optimiser" not in told
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FolderHub(tmp_path))
    monkeypatch.setattr(sys, "argv", sys.argv[:-1])
    with pytest.raises(SystemExit):
        main()
    assert "uploaded: https://hub.example/owner/name" in capsys.readouterr().out
