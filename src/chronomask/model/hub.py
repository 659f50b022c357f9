"""Models by folder or by name: where their files are, without opening them."""

from __future__ import annotations

from pathlib import Path

from chronomask.errors import UsageError

__all__ = ["download", "is_hub_name", "model_folder"]

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""Config, tokenizer and weights; nothing that could hold code."""


def model_folder(name: str | Path) -> Path:
    """The folder of a model that transformers opens: a local one, or the local copy of a hub model.

    Raises UsageError where there is none.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if not is_hub_name(str(name)):
        raise UsageError(f"{name} is not a model folder: it has no config.json")
    return download(str(name))


def is_hub_name(name: str) -> bool:
    """Whether a text can only be a model's name on the hub, ``owner/name``: no such folder is there."""
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    return not (looks_like_a_path or Path(name).exists())


def download(name: str) -> Path:
    """The local copy of a hub model's config, tokenizer and weights; raises UsageError.

    It is fetched unless the hub's cache has it. Weights are read from safetensors alone.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises what its transport layers do
        first = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"{name} is no local folder, and cannot be loaded from the hub: "
            f"{type(error).__name__}: {first}"
        ) from None
    if not (folder / "config.json").is_file():
        raise UsageError(f"the hub's {name} has no config.json: it is not a transformers model")
    return folder
