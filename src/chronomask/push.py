"""Publishes a model on the Hugging Face hub: its weights, tokenizer and card, and nothing else.

What goes up is a list of names, so that the optimiser's state, data, logs and whatever else lies beside a
model stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronomask.errors import RunError, UsageError, shown
from chronomask.evaluate.subject import find_subject
from chronomask.runs.layout import RunFolder, checkpoints_in
from chronomask.storage import as_a_shell_has_it

__all__ = ["Upload", "check_repo", "plan_push", "push"]

_NAMES = re.compile(
    r"README\.md|LICENSE|config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors"
    r"|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(txt|json)|merges\.txt|(spiece|spm|sentencepiece\.bpe)\.model"
)
"""Files that are uploaded, beside those that the tokenizer's class reads."""
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Upload:
    """One model, and where it goes."""

    revision: str
    """branch of the repository: ``main``, or ``step-…`` of a checkpoint"""
    folder: Path
    files: tuple[str, ...]
    """names in the folder"""
    left_out: tuple[str, ...]
    """names in the folder that stay"""

    def __str__(self) -> str:
        """The files with their sizes."""
        sizes = {name: (self.folder / name).stat().st_size for name in self.files}
        lines = [f"{self.revision}: {self.folder}, {_size_in_words(sum(sizes.values()))}"]
        lines += [f"  {name}  {_size_in_words(size)}" for name, size in sizes.items()]
        if self.left_out:
            lines.append(f"  not uploaded: {', '.join(self.left_out)}")
        return "\n".join(lines)


def plan_push(run: str | Path, *, revisions: bool = False) -> list[Upload]:
    """What there is to upload of ``run``, for the branch ``main`` last.

    ``run``: a run (its newest checkpoint), a checkpoint, a model folder or a folder of ``adapt``;
    ``revisions``: also every checkpoint of the run, for a branch named after its step. Raises UsageError
    where there is no model or no card, DataError for a damaged checkpoint, and for a model without a
    tokenizer.
    """
    path = as_a_shell_has_it(run)
    if not path.exists():
        raise UsageError(f"{path} does not exist: name a run, a checkpoint or a model folder")
    # What adapt leaves: the model with a card that tells what was gained is beside the run.
    adapted = path / "model"
    newest = find_subject(str(adapted if (adapted / "config.json").is_file() else path))
    uploads = []
    if revisions:
        inner = path / "run" if newest.path == adapted else path
        checkpoints = checkpoints_in(RunFolder(inner).checkpoints)
        if not checkpoints:
            raise UsageError(f"--revisions: {path} is no run, so it has no checkpoints to upload")
        uploads = [
            _upload(each.name, find_subject(str(each)).path) for each in reversed(checkpoints)
        ]
    return [*uploads, _upload("main", newest.path)]


def push(uploads: Sequence[Upload], repo: str, *, private: bool = False, api: Any = None) -> str:
    """Upload to the repository ``repo``, ``owner/name``, made if it is not there; its address.

    ``private``: a new repository is private; ``api``: a ``huggingface_hub.HfApi``. Each branch takes one
    commit, which also removes the files of another model that was there, so that no branch ever holds parts
    of two. Files that are there already are not sent again, so an interrupted push goes on with the same
    call.

    Raises UsageError for a name that is none, without a token or a network, and for a public repository
    that was to be private; RunError for what the hub refuses.
    """
    check_repo(repo)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    api = HfApi() if api is None else api
    try:
        api.whoami()
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        # The hub ignores what is asked of a repository that is there.
        if private and not api.repo_info(repo).private:
            raise UsageError(
                f"{repo} already exists and is public: make it private on the hub, or choose another name"
            )
        for upload in uploads:
            if upload.revision != "main":
                # From main's newest commit, the branch would hold main's model until its own is up.
                first = api.list_repo_commits(repo)[-1].commit_id
                api.create_branch(repo, branch=upload.revision, revision=first, exist_ok=True)
            there = api.list_repo_files(repo, revision=upload.revision)
            api.create_commit(
                repo,
                operations=[
                    *(CommitOperationAdd(name, upload.folder / name) for name in upload.files),
                    *(CommitOperationDelete(name) for name in _of_another_model(there, upload)),
                ],
                revision=upload.revision,
                commit_message=f"Upload {upload.revision} with chronomask",
            )
    except LocalTokenNotFoundError:
        raise UsageError(
            "the hub needs a login: run  hf auth login  or set HF_TOKEN to a token that may write"
        ) from None
    except OfflineModeIsEnabled:
        raise UsageError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it where there is a network"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or _first_line(error)
        raise RunError(
            f"the hub does not take {repo} (status {status}): {said}; {_WAYS_OUT.get(status, _LATER)}"
        ) from None
    except UsageError:
        raise
    except Exception as error:  # the hub's client raises what its transport layers do
        raise RunError(
            f"{repo} could not be uploaded: {type(error).__name__}: {_first_line(error)}; where there is a "
            "network, the same command continues"
        ) from None
    return str(address)


def _upload(revision: str, folder: Path) -> Upload:
    from chronomask.model.open import open_tokenizer

    own = open_tokenizer(folder).vocab_files_names.values()
    names = sorted(path.name for path in folder.iterdir())
    files = tuple(
        name
        for name in names
        if (_NAMES.fullmatch(name) or name in own) and (folder / name).is_file()
    )
    if "README.md" not in files:
        raise UsageError(
            f"{folder} has no README.md, and a model is not published without a card: write one, or name a "
            "run, whose checkpoints have one"
        )
    return Upload(revision, folder, files, tuple(name for name in names if name not in files))


def _of_another_model(names: Sequence[str], upload: Upload) -> list[str]:
    """Weights and tokenizer files among ``names`` that ``upload`` does not replace.

    With them the branch would load as a mixture: transformers prefers a ``tokenizer.json`` that was left
    over to the ``vocab.txt`` of the new model. What the owner wrote stays.
    """
    keep = {*upload.files, "README.md", "LICENSE"}
    return [name for name in names if _NAMES.fullmatch(name) and name not in keep]


_LATER = "the same command continues, when the hub takes it"
_NOT_YOURS = "check that the name is yours and that the token may write"
_WAYS_OUT = {
    401: "log in once more with  hf auth login: the token may have expired",
    **dict.fromkeys((403, 404), _NOT_YOURS),
    413: "it is more than the hub takes",
    429: "these were too many requests: wait some minutes, and the same command continues",
}
"""By the status of the hub's answer."""


def check_repo(repo: str) -> None:
    """Raise UsageError for what cannot be a repository's name."""
    if not _REPO.fullmatch(repo):
        raise UsageError(f"{shown(repo)} is not a repository of the hub: give owner/name")


def _first_line(error: Exception) -> str:
    return next(filter(str.strip, str(error).splitlines()), "")


def _size_in_words(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
