"""Encoded examples in little memory, and batches of them that hold little padding.

Batches are made of examples of like length: a random order is cut into pools of many batches, each pool
is sorted by length and cut into batches, and the batches are shuffled. A batch is padded to its longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import UsageError
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.types import send_all

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Encoded",
    "by_length",
    "by_tokens",
    "check_pairs",
    "encode",
    "end_to_end",
    "padding_of",
    "shuffled_batches",
]

BATCHES_PER_POOL = 50
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of N examples, end to end.

    ``ids`` int32 [sum of lengths]; ``types`` uint8, the same shape, or None where all are of one
    segment; ``bounds`` int64 [N + 1]: example k is ``ids[bounds[k]:bounds[k + 1]]``; ``left_out``: how
    much of the examples the tokens do not hold, by reason.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    bounds: NDArray[np.int64]
    pad_token_id: int
    left_out: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return self.bounds.size - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [N]: tokens of each example."""
        return np.diff(self.bounds)

    def batch(
        self,
        index: NDArray[np.int64],
        model: PreTrainedModel,
        device: torch.device,
        *,
        length: int | None = None,
    ) -> dict[str, Any]:
        """What the model is given for these examples: [len(index), longest], on ``device``.

        What says which tokens are padding is left out where none is, token types where the model has none.
        ``length``: rows are padded to so many tokens, and inputs are of one kind whatever the padding.
        """
        from chronomask.model.documents import padded_rows

        begins = self.bounds[index][:, None]
        lengths = self.bounds[index + 1][:, None] - begins
        longest = max(1, lengths.max()) if length is None else length  # a text may have no token
        place = np.arange(longest)
        real, source = place < lengths, begins + place

        def pad(values: NDArray[Any], fill: int) -> NDArray[np.int64]:
            there = values.take(source, mode="clip") if values.size else fill
            return np.where(real, there, fill).astype(np.int64)

        made = {"input_ids": pad(self.ids, self.pad_token_id)}
        if self.types is not None and _takes_types(model):
            made["token_type_ids"] = pad(self.types, 0)
        return send_all(made, device) | padded_rows(
            model, real, device, one_shape=length is not None
        )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    shown: Progress = NOT_SHOWN,
) -> Encoded:
    """Texts, or pairs of texts, with their special tokens; the longer of a pair is cut first.

    They are tokenised whole, and cut here, so that what they lose is known at no further cost. ``shown``:
    counts the texts, or the pairs.
    """
    rows: list[Sequence[int] | NDArray[Any]] = []
    types: list[Sequence[int] | NDArray[Any]] = []
    cut = lost = 0
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        part = slice(begin, begin + _TEXTS_AT_ONCE)
        encoded = tokenizer(
            list(texts[part]),
            None if pairs is None else list(pairs[part]),
            return_attention_mask=False,
            return_token_type_ids=pairs is not None,
            verbose=False,
        )
        ids: list[Any] = encoded["input_ids"]
        kinds: list[Any] = encoded.get("token_type_ids", [])
        for number in np.flatnonzero([len(row) > max_length for row in ids]).tolist():
            size = len(ids[number])
            if tokenizer.is_fast:
                kept = _choose_tokens(
                    encoded.sequence_ids(number), max_length, tokenizer.truncation_side
                )
                for column in (ids, kinds) if kinds else (ids,):
                    column[number] = np.asarray(column[number])[kept]
            else:  # it does not say which text a token is of
                one = slice(begin + number, begin + number + 1)
                short = tokenizer(
                    list(texts[one]),
                    None if pairs is None else list(pairs[one]),  # "" alone would be no pair
                    truncation=True,
                    max_length=max_length,
                    return_token_type_ids=pairs is not None,
                )
                ids[number] = short["input_ids"][0]
                if kinds:
                    kinds[number] = short["token_type_ids"][0]
            cut += 1
            lost += size - len(ids[number])
        rows += ids
        types += kinds
        shown.advance(len(ids))
    left_out = {f"examples cut at {max_length} tokens": cut, "tokens cut off": lost}
    return replace(end_to_end(rows, types or None, tokenizer), left_out=left_out)


def _choose_tokens(of_text: Sequence[int | None], max_length: int, side: str) -> NDArray[np.bool_]:
    """Which tokens of a longer row a fast tokenizer keeps that cuts it at ``max_length``, [tokens].

    ``of_text``: the text that each token is of, 0 or 1, None for a special one; ``side``: where texts are
    cut, "right" or "left". The longer text is cut to what the other leaves; where that is less than the
    other has, each has a half, the longer one the odd token.
    """
    owner = np.array([-1 if text is None else text for text in of_text])
    places = [np.flatnonzero(owner == text) for text in (0, 1)]
    room = max(0, max_length - int((owner < 0).sum()))
    longer = int(places[0].size <= places[1].size)
    few = places[1 - longer].size
    many = max(few, room - few)
    if few + many > room:
        few, many = room // 2, room - room // 2
    kept = np.ones(owner.size, bool)
    for own, size in ((places[longer], many), (places[1 - longer], few)):
        kept[own[size:] if side == "right" else own[: own.size - size]] = False
    return kept


def end_to_end(
    rows: Sequence[Sequence[int] | NDArray[Any]],
    types: Sequence[Sequence[int] | NDArray[Any]] | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    """Rows of token ids, and of token types, at least one."""
    bounds = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
    flat = None if types is None else np.concatenate([np.asarray(t, np.uint8) for t in types])
    return Encoded(ids, flat, bounds, padding_of(tokenizer))


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that rows are filled up with: of a tokenizer without padding, that of the end of a text."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((number for number in known if isinstance(number, int)), 0)


def check_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that runs two texts together; raises UsageError."""
    alone, both = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
    if both <= alone:
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) puts nothing between two texts: give its "
            "post-processor a template for pairs, such as [CLS] $A [SEP] $B:1 [SEP]:1"
        )


def shuffled_batches(
    lengths: NDArray[np.int64], batch_size: int, key: int
) -> list[NDArray[np.int64]]:
    """The batches of one epoch, int64 indices: each example once, a function of ``key``."""
    from chronomask.keyed import permute

    size = lengths.size
    order = np.argsort(permute(np.arange(size), size, key))
    pool = batch_size * BATCHES_PER_POOL
    batches = []
    for begin in range(0, size, pool):
        part = order[begin : begin + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[k : k + batch_size] for k in range(0, part.size, batch_size)]
    return [batches[k] for k in permute(np.arange(len(batches)), len(batches), key + 1)]


def by_length(
    lengths: NDArray[np.int64], batch_size: int, model: nn.Module
) -> Iterator[NDArray[np.int64]]:
    """Batches for prediction, the longest first, so that memory that suffices once suffices always.

    For a ``model`` that mixes padding into its tokens all examples of a batch are of one length, so that
    what it says of one does not depend on the others.
    """
    for order in _runs(lengths, model):
        for begin in range(0, order.size, batch_size):
            yield order[begin : begin + batch_size]


def by_tokens(
    lengths: NDArray[np.int64], batch_tokens: int, model: nn.Module
) -> Iterator[NDArray[np.int64]]:
    """Batches as of :func:`by_length`, of at most ``batch_tokens`` tokens, or of one example.

    ``lengths`` are above 0.
    """
    for order in _runs(lengths, model):
        begin = 0
        while begin < order.size:
            size = max(1, batch_tokens // int(lengths[order[begin]]))
            yield order[begin : begin + size]
            begin += size


def _runs(lengths: NDArray[np.int64], model: nn.Module) -> Iterator[NDArray[np.int64]]:
    """Indices, the longest first: all of them, or those of each length by themselves."""
    from chronomask.model.documents import mixes_padding

    order = np.argsort(-lengths, kind="stable")
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1 if mixes_padding(model) else []
    yield from np.split(order, cuts)


def _takes_types(model: Any) -> bool:
    """Whether the model tells a second segment from the first."""
    from chronomask.model.documents import keywords_of

    return (
        "token_type_ids" in keywords_of(model)
        and (getattr(model.config, "type_vocab_size", 0) or 0) > 1
    )
