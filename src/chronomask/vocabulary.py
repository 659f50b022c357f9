"""What ids a tokenizer gives: how many a model must know, and which may stand in for others.

Ids need not be 0 … n − 1: where entries were removed, or ids set apart, a vocabulary has holes. So nothing
counts entries (``len(tokenizer)``); whoever needs a size asks here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask.errors import UsageError, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Vocabulary",
    "check_padding",
    "need_role",
    "other_roles",
    "special_ids",
    "unknown_id",
    "vocabulary_size",
]

_ROLES = ("mask", "pad", "cls", "sep", "bos", "eos", "unk")
"""What a tokenizer's special tokens are for, as transformers calls it."""


def vocabulary_size(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> int:
    """The number of ids that a model must know: one more than the largest, whichever are in use."""
    return max(tokenizer.get_vocab().values()) + 1


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of all special tokens, which are never masked; that of unknown text is one of them."""
    unknown = unknown_id(tokenizer)
    return {*tokenizer.all_special_ids} | (set() if unknown is None else {unknown})


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that text gets of which the vocabulary has no pieces; None where there is none.

    It is that of the vocabulary itself. The tokenizer's files may name no unknown token, or another one.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    token = None if backend is None else getattr(backend.model, "unk_token", None)
    own: Any = tokenizer.unk_token_id
    known = None if backend is None or token is None else backend.token_to_id(token)
    return own if known is None else known


def other_roles(tokenizer: PreTrainedTokenizerBase, role: str) -> list[str]:
    """Which other roles the token of a role has."""
    own = getattr(tokenizer, f"{role}_token_id")
    others = [name for name in _ROLES if name != role]
    return [name for name in others if getattr(tokenizer, f"{name}_token_id", None) == own]


def need_role(tokenizer: PreTrainedTokenizerBase, role: str, whose: str) -> int:
    """The id of the token of a role; raises UsageError where there is none.

    ``whose``: what a refusal calls the tokenizer.
    """
    number: Any = getattr(tokenizer, f"{role}_token_id")
    if number is None:
        raise UsageError(
            f"{whose} has no {role} token, which masked language models need: choose a masked language "
            f"model, or, before any is trained, add one with tokenizer.add_special_tokens({{'{role}_token': "
            f"'<{role}>'}}) and save the tokenizer again"
        )
    return int(number)


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError where the padding token has another role: the ends of texts would be padding too."""
    if tokenizer.pad_token_id is None:
        return
    shared = other_roles(tokenizer, "pad")
    if shared:
        raise UsageError(
            f"tokenizer {tokenizer.name_or_path!r} has {shown(tokenizer.pad_token)} as its pad token and as "
            f"its {' and '.join(shared)} token; give it another with tokenizer.add_special_tokens("
            "{'pad_token': '<pad>'}), and give a model that exists a row for it with "
            "model.resize_token_embeddings(len(tokenizer))"
        )


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What masking must know of a tokenizer.

    ``mask_token_id``; ``ordinary_ids`` int64 [num_ordinary], rising: the tokens that may stand in as
    random replacements (no special, added or unused token, and no id without a token); ``size``: every
    id is below it; ``pad_token_id``: −1 where the tokenizer has no padding.
    """

    mask_token_id: int
    ordinary_ids: np.ndarray
    size: int
    pad_token_id: int = -1

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Raises UsageError for a tokenizer without a mask token."""
        mask_token_id = need_role(tokenizer, "mask", f"tokenizer {tokenizer.name_or_path!r}")
        tokens = tokenizer.get_vocab()
        special = special_ids(tokenizer) | set(tokenizer.added_tokens_decoder)
        ordinary = sorted(
            number
            for token, number in tokens.items()
            if number not in special and not token.startswith("[unused")
        )
        pad_token_id: Any = tokenizer.pad_token_id
        return cls(
            mask_token_id,
            np.array(ordinary, np.int64),
            vocabulary_size(tokenizer),
            -1 if pad_token_id is None else int(pad_token_id),
        )
