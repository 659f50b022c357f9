"""What a folder is, by the files in it: for the refusal of one that was named in place of another."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

__all__ = [
    "is_of_preparation",
    "is_of_training",
    "is_prepared_data",
    "way_to_prepare_again",
    "what_it_is",
]


def is_prepared_data(folder: Path) -> bool:
    """Whether a preparation finished there."""
    return _has_manifest(folder) and (folder / "tokenizer").is_dir()


def is_of_preparation(folder: Path) -> bool:
    """Whether a preparation finished there, or began to write there."""
    return _has_manifest(folder) or (folder / ".work" / "state.json").is_file()


def _has_manifest(folder: Path) -> bool:
    """Whether its ``manifest.json`` is that of prepared data, for other programs have files of that name.

    One that is damaged or cannot be read is known by what lies beside it.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        return False
    content = b""
    with suppress(OSError):
        content = file.read_bytes()
    others = ("config.yaml", "statistics.json", "tokenizer")
    return all(name in content for name in (b'"schema_version"', b'"fingerprint"')) or all(
        (folder / name).exists() for name in others
    )


def is_of_training(folder: Path) -> bool:
    """Whether it is a run or a study, whose logs are no text although their formats are those of text."""
    return _is_run(folder) or _is_study(folder)


def way_to_prepare_again(folder: Path) -> str:
    """What to do about prepared data that are damaged: a study and an adaptation prepare their own."""
    whole = folder.absolute().parent
    if (whole / "study.yaml").is_file() and folder.name == "data":
        command = shlex.join(["chronomask", "study", "run", "--out", str(folder.parent)])
        return f"remove {folder}, and  {command}  prepares the study's text again"
    if (whole / ".adaptation").is_file():
        return f"remove {folder} and repeat the command of the adaptation, which prepares the text again"
    return "run `chronomask prepare` again with --force to rewrite the folder"


def _is_run(folder: Path) -> bool:
    logged = (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()
    return logged and (folder / "config.yaml").exists()


def _is_study(folder: Path) -> bool:
    return (folder / "study.yaml").exists() and (folder / "runs").exists()


def what_it_is(folder: Path) -> str:
    """The end of a refusal: what the folder is instead, and which part of it or which command is meant.

    Empty where its files do not say it, and for what is no folder.
    """
    found = _judge_by_files(folder) if folder.is_dir() else None
    return f"; it {found}" if found else ""


def _judge_by_files(folder: Path) -> str | None:
    """What a folder of chronomask's or transformers' is or holds; the surest marks come first."""

    def has(*names: str) -> bool:
        return all((folder / name).exists() for name in names)

    if _is_study(folder):
        data = f"its prepared data are {folder / 'data'}, " if has("data/manifest.json") else ""
        first = _first_run(folder / "runs") or folder / "runs"
        return f"is a study: {data}its runs are such as {first}"
    if is_prepared_data(folder):
        tokenizer = folder / "tokenizer"
        return f"is prepared data, which chronomask pretrain --data takes, with the tokenizer {tokenizer}"
    if _is_run(folder):
        models = sorted(folder.glob("checkpoints/step-*/transformers"))
        newest = f" with the model {models[-1]}" if models else ""
        goes_on = f"chronomask pretrain --out {shlex.quote(str(folder))} --resume continues"
        return (
            f"is a run{newest}, which chronomask evaluate and chronomask report take; {goes_on} it"
        )
    if has("state.json", "transformers"):
        run = folder.parent.parent
        whose = f"the run {run}" if (run / "config.yaml").is_file() else "a run"
        return f"is a checkpoint of {whose}, with the model {folder / 'transformers'}"
    if any(folder.glob("step-*/state.json")) and (folder.parent / "config.yaml").is_file():
        return f"holds the checkpoints of the run {folder.parent}"
    if any(folder.glob("*-seed*.json")):
        return f"holds results of tasks, which chronomask compare {shlex.quote(str(folder))} shows"
    if has("model/config.json") and _is_run(folder / "run"):
        return (
            f"is an adaptation: its model is {folder / 'model'}, its run {folder / 'run'}, its prepared data "
            f"{folder / 'data'}, and what it measured {folder / 'before/data'} and {folder / 'after/data'}"
        )
    if has("model/config.json"):
        return f"holds a model, {folder / 'model'}"
    if has("config.json"):
        return "is a model, which chronomask evaluate and chronomask adapt take"
    if has("adapter_config.json"):
        merged = f"PeftModel.from_pretrained(model, {str(folder)!r}).merge_and_unload()"
        return (
            f"holds an adapter of PEFT and no whole model: in Python {merged}.save_pretrained(FOLDER) makes "
            "one; save the tokenizer there too"
        )
    if has("tokenizer.json"):
        return "is a tokenizer, which chronomask prepare TEXT --tokenizer takes"
    measured = min(folder.glob("*/*-seed*.json"), default=None)
    if measured is not None:
        return f"holds results of tasks, such as in {measured.parent}"
    run = _first_run(folder)
    return None if run is None else f"holds runs, such as {run}"


def _first_run(folder: Path) -> str | None:
    """The first run within a folder, in order of name, at most two levels down; as a shell takes it."""
    logs = (*folder.glob("*/metrics.jsonl"), *folder.glob("*/*/metrics.jsonl"))
    first = min((log.parent for log in logs), default=None)
    return None if first is None else shlex.quote(str(first))
