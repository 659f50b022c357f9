"""A folder's ``tokenizer.json`` decides the tokens of a text.

Most of transformers' tokenizer classes take the vocabulary of that file alone, and build the rest as their
architecture has it: RoBERTa's adds no space before a text, XLM-RoBERTa's takes the entry of id 3 for the
unknown token. A file that says otherwise is taken as it is here. What ``tokenizer_config.json`` sets by
name (:data:`_SETTINGS`) stands above it, as in transformers, where the class of the folder obeys it. The
tokens that are put around a text are always those of the class.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.storage import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["follow_file"]

logger = logging.getLogger(__name__)

_SETTINGS = {
    "do_lower_case": ("normalizer", "lowercase"),
    "strip_accents": ("normalizer", "strip_accents"),
    "tokenize_chinese_chars": ("normalizer", "handle_chinese_chars"),
    "add_prefix_space": ("pre_tokenizer", "add_prefix_space"),
}
"""Names in ``tokenizer_config.json``: the part of ``tokenizer.json`` and the field that each sets."""
_ENTRIES = ("vocab", "merges")
"""Of a model, what is as long as the vocabulary."""


def follow_file(folder: Path, opened: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """``opened``, which transformers made of ``folder``; or another with the tokens of its tokenizer.json.

    The other is of the class PreTrainedTokenizerFast, which takes a file as it is, also where it is saved
    and opened again. Raises what the tokenizers library raises for a damaged file.
    """
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    # The base class itself has loaded the file.
    if not opened.is_fast or type(opened) is PreTrainedTokenizerFast or not file.is_file():
        return opened
    values = json.loads(file.read_text(encoding="utf-8"))
    settings = read_object(folder / "tokenizer_config.json") or {}
    backend: Any = opened.backend_tokenizer
    model = _state(backend.model)
    theirs = {
        "normalizer": _state(backend.normalizer),
        "pre_tokenizer": _state(backend.pre_tokenizer),
        "model": _without_entries(model),
    }
    ours = _parts(values)
    differing = [part for part, own in ours.items() if own != theirs[part]]
    asked = [
        name
        for name, (part, field) in _SETTINGS.items()
        if settings.get(name) is not None
        and _value(ours[part], field) not in (None, settings[name])
        and _value(theirs[part], field) == settings[name]
    ]
    if asked:
        shown = " and ".join(f"{name} = {json.dumps(settings[name])}" for name in asked)
        _tell(
            f"{folder}: tokenizer_config.json sets {shown}, which stands above tokenizer.json; take it out "
            "to have the file's own"
        )
    kept = {_SETTINGS[name][0] for name in asked}
    taken = [part for part in differing if part not in kept]
    if not _has_entries(model, values["model"]):
        taken.append("vocabulary")
    if not _has_added(opened, values.get("added_tokens", ()), settings):
        taken.append("added tokens")
    if not taken:
        return opened
    _tell(
        f"{folder}: tokenizer.json is used as it is; transformers' {type(opened).__name__} would use another "
        f"{' and '.join(taken)}"
    )
    roles = opened.special_tokens_map.items()
    specials: dict[str, Any] = {role: token for role, token in roles if role not in settings}
    given: Any = PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, model_input_names=opened.model_input_names, **specials
    )
    for part in kept:
        setattr(given.backend_tokenizer, part, getattr(backend, part))
    if _special_ids(given) == _special_ids(opened):
        _put_around(given.backend_tokenizer, backend.post_processor)
    return given


@functools.cache
def _tell(line: str) -> None:
    """Log a line once: a command opens the same folder many times."""
    logger.warning(line)


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``tokenizer.json`` says of its parts, as the library writes it today, without the entries."""
    from tokenizers import Tokenizer

    model = dict(values["model"])
    entries = model["vocab"]
    # A Unigram's unknown token is one of its entries.
    model["vocab"] = entries[: (model.get("unk_id") or 0) + 1] if isinstance(entries, list) else {}
    if "merges" in model:
        model["merges"] = []
    parts = {"normalizer": values.get("normalizer"), "pre_tokenizer": values.get("pre_tokenizer")}
    small: Any = Tokenizer.from_str(json.dumps({"version": "1.0", **parts, "model": model}))
    return {
        "normalizer": _state(small.normalizer),
        "pre_tokenizer": _state(small.pre_tokenizer),
        "model": _without_entries(_state(small.model)),
    }


def _state(part: Any) -> Any:
    """A part of a tokenizer as values of JSON; None for none."""
    if part is None:
        return None
    state = json.loads(part.__getstate__())
    if state.get("type") == "BertNormalizer" and state["strip_accents"] is None:
        state["strip_accents"] = state["lowercase"]  # as the library reads it
    return state


def _without_entries(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state without its entries, and without what is not set: an affix may be null or empty."""
    return {
        key: value
        for key, value in model.items()
        if key not in _ENTRIES and value not in (None, "")
    }


def _value(part: Any, field: str) -> bool | None:
    """What a part's state says of a field, in itself or in one of its sequence; None where nothing."""
    if part is None:
        return None
    inner = part.get("normalizers") or part.get("pretokenizers") or ()
    for each in (part, *inner):
        if field in each:
            return each[field]
        if field == "add_prefix_space" and "prepend_scheme" in each:
            return each["prepend_scheme"] != "never"
    return None


def _has_entries(state: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether a model's state has the entries of the ``model`` of a ``tokenizer.json``, with their ids."""
    own, given = (
        vocab if isinstance(vocab, dict) else [entry[0] for entry in vocab]
        for vocab in (state["vocab"], model["vocab"])
    )
    return own == given


def _has_added(
    opened: PreTrainedTokenizerBase, added: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> bool:
    """Whether added tokens of a ``tokenizer.json`` are there, unless the settings describe them anew."""
    anew = {token["content"] for token in settings.get("added_tokens_decoder", {}).values()}
    there = {number: token.__getstate__() for number, token in opened.added_tokens_decoder.items()}
    # The class decides which of them are special.
    return all(
        there.get(token["id"], {}).get(key) == value
        for token in added
        if token["content"] not in anew
        for key, value in token.items()
        if key not in ("id", "special")
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {role: getattr(tokenizer, f"{role}_id") for role in tokenizer.special_tokens_map}


def _put_around(backend: Any, post_processor: Any) -> None:
    """Give a backend another's post-processor, which trims a space where the pre-tokenizer adds one."""
    if post_processor is None:
        return
    adds = getattr(backend.pre_tokenizer, "add_prefix_space", None)
    if adds is not None and hasattr(post_processor, "add_prefix_space"):
        post_processor.add_prefix_space = adds
    backend.post_processor = post_processor
