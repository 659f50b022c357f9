"""The nouns that rooms hand to each other. No logic beyond moving and slicing them.

Shape letters: B rows, T tokens of a row, N predicted tokens of a batch, C classes.
Arrays are numpy arrays on the host, or torch tensors after :meth:`Rows.to`. ``upos`` are the 17
universal part-of-speech tags (universaldependencies.org/u/pos); class 0 always means "no class".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "NO_CLASS",
    "UPOS",
    "UPOS_CLASSES",
    "VISIT_BITS",
    "ClassTally",
    "Device",
    "Document",
    "MaskedBatch",
    "Precision",
    "Rows",
    "TaggedWords",
    "pack",
    "packed_size",
    "send",
    "send_all",
    "unpack",
]

NO_CLASS = 0
"""The class of a token that has none."""
UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM",
    "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X",
)  # fmt: skip
"""The universal parts of speech (universaldependencies.org/u/pos); the k-th is class k, from 1 on."""
UPOS_CLASSES = ("none", *UPOS)
"""Class names of part-of-speech tagged data: ``UPOS_CLASSES[token_class]``."""

Device = Literal["auto", "cpu", "cuda"]
"""Where a model computes; ``auto`` takes a CUDA device if there is one."""
Precision = Literal["fp32", "bf16", "auto"]
"""Of matrix products; weights, sums and optimiser state are float32 always. ``auto``: bf16 on CUDA
devices that compute it and on processors that are faster with it (Intel's with AMX, AMD's since Zen 4), else
fp32."""

VISIT_BITS = 32
"""Low bits of a row's epoch that count its visits; above them a part of a row says which part it is."""
_EPOCH_STRIDE = 0x9E3779B1
"""How far apart in training order two visits of a row are said to be: more than any data set."""

Array = Any
"""A numpy array or a torch tensor, as the class docstring says."""


@dataclass(frozen=True, slots=True)
class TaggedWords:
    """Words that came with a text, in order and without overlap.

    ``starts`` and ``ends`` in characters, ends exclusive; ``tags`` as the source spells them, "" for
    none.
    """

    starts: Sequence[int]
    ends: Sequence[int]
    tags: Sequence[str]


@dataclass(frozen=True, slots=True)
class Document:
    """One text as its source gave it; ``id`` says where it came from; ``words`` only if it has some."""

    id: str
    text: str
    metadata: dict[str, str | int | float] = field(default_factory=dict)
    words: TaggedWords | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Unmasked rows of one step, made of (data, seed, step) alone.

    ``input_ids`` int64 [B, T];
    ``word_id`` int32 [B, T]: words of a row counted from 0, −1 where a token must never be masked
    (special or padding);
    ``token_class`` uint8 [B, T], 0 = none;
    ``row_id`` int64 [B]: the row's number in its data set; ``epoch`` int64 [B]: which visit it is.
    Together with the seed these two key every random number of the row, so they stay on the host;
    ``cu_seqlens`` int32 [D + 1]: where documents begin in the flattened B·T tokens; it starts with 0,
    ends with B·T, and always cuts at row ends;
    ``order`` int64 [B], on the host: the row's place in the training order, counted over all steps
    and ranks; spreads what is rounded or drawn once a row evenly over neighbours. None: made of row
    and epoch;
    ``attention_mask`` int64 [B, T], 0 where the model must not look (padding); None where unknown;
    ``scores`` float32 [B, T], how hard each token is, higher = harder; None where the data has none;
    ``ngrams`` uint8 [B, T], at the first token of a word how many words the longest collocation has that
    begins with it, 0 for none; None where none were looked for;
    ``token_type_ids`` int64 [B, T], which segment of the text a token is of, as models of sentence pairs are
    told it; None where all are of segment 0, which is what models take for granted.
    """

    input_ids: Array
    word_id: Array
    token_class: Array
    row_id: np.ndarray
    epoch: np.ndarray
    cu_seqlens: Array
    order: np.ndarray | None = None
    attention_mask: Array | None = None
    scores: Array | None = None
    ngrams: Array | None = None
    token_type_ids: Array | None = None

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def row_length(self) -> int:
        return self.input_ids.shape[1]

    @property
    def place(self) -> np.ndarray:
        """int64 [B]: ``order``; where there is none, row ids moved far away in every epoch."""
        if self.order is not None:
            return self.order
        return self.row_id + self.epoch * _EPOCH_STRIDE

    def slice(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop`` (exclusive) of a host batch, document bounds included."""
        length = self.row_length
        first, last = np.searchsorted(self.cu_seqlens, [start * length, stop * length])
        return Rows(
            self.input_ids[start:stop],
            self.word_id[start:stop],
            self.token_class[start:stop],
            self.row_id[start:stop],
            self.epoch[start:stop],
            self.cu_seqlens[first : last + 1] - np.int32(start * length),
            None if self.order is None else self.order[start:stop],
            None if self.attention_mask is None else self.attention_mask[start:stop],
            None if self.scores is None else self.scores[start:stop],
            None if self.ngrams is None else self.ngrams[start:stop],
            None if self.token_type_ids is None else self.token_type_ids[start:stop],
        )

    def micro_batches(self, num: int) -> Iterator[Rows]:
        """``num`` nearly equal parts of a host batch, in order; empty parts are left out."""
        edges = [self.num_rows * k // num for k in range(num + 1)]
        for start, stop in pairwise(edges):
            if stop > start:
                yield self.slice(start, stop)

    def select(self, which: np.ndarray) -> Rows:
        """The rows of a host batch where ``which`` bool [B], in order; itself where that is all of them."""
        if which.all():
            return self
        length, bounds = self.row_length, np.asarray(self.cu_seqlens, np.int64)
        row = np.minimum(bounds[:-1] // length, self.num_rows - 1)
        gone = np.cumsum(~which)
        begins = (bounds[:-1] - gone[row] * length)[which[row]]
        end = np.count_nonzero(which) * length

        def of(values: Array | None) -> Array | None:
            return None if values is None else values[which]

        return Rows(
            self.input_ids[which],
            self.word_id[which],
            self.token_class[which],
            self.row_id[which],
            self.epoch[which],
            np.append(begins, end).astype(self.cu_seqlens.dtype),
            of(self.order),
            of(self.attention_mask),
            of(self.scores),
            of(self.ngrams),
            of(self.token_type_ids),
        )

    def pad_to(self, num: int, pad_token_id: int) -> Rows:
        """A host batch with rows of padding after it, ``num`` rows in all; itself if it has as many."""
        more = num - self.num_rows
        if more <= 0:
            return self
        length = self.row_length

        def lengthen(values: Array, fill: int) -> Array:
            return np.concatenate((values, np.full((more, *values.shape[1:]), fill, values.dtype)))

        ends = self.cu_seqlens[-1] + length * np.arange(1, more + 1, dtype=self.cu_seqlens.dtype)
        mask, types = self.attention_mask, self.token_type_ids
        return Rows(
            lengthen(self.input_ids, pad_token_id),
            lengthen(self.word_id, -1),
            lengthen(self.token_class, NO_CLASS),
            lengthen(self.row_id, -1),
            lengthen(self.epoch, 0),
            np.concatenate((self.cu_seqlens, ends)),
            attention_mask=None if mask is None else lengthen(mask, 0),
            token_type_ids=None if types is None else lengthen(types, 0),
        )

    def to(self, device: torch.device | str) -> Rows:
        """The same rows as torch tensors on ``device`` (a copy that does not wait for the host)."""
        moved = (
            "input_ids", "word_id", "token_class", "cu_seqlens", "attention_mask", "scores", "ngrams",
            "token_type_ids",
        )  # fmt: skip
        return replace(self, **send_all({name: getattr(self, name) for name in moved}, device))

    def on_host(self) -> Rows:
        """The same rows as numpy arrays, but for what is only passed on: ``attention_mask`` and
        ``token_type_ids``.
        """

        def of(values: Array | None) -> Array | None:
            if values is None or isinstance(values, np.ndarray):
                return values
            return (values if values.is_cpu else values.cpu()).numpy()

        return Rows(
            of(self.input_ids),
            of(self.word_id),
            of(self.token_class),
            self.row_id,
            self.epoch,
            of(self.cu_seqlens),
            self.order,
            self.attention_mask,
            of(self.scores),
            of(self.ngrams),
            self.token_type_ids,
        )


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """What the model is given and what it must predict.

    ``input_ids`` int64 [B, T] after replacement; ``labels`` int64 [B, T], −100 where nothing is
    predicted;
    ``positions`` int64 [N]: flat indices (row · T + token) of the predicted tokens, ascending;
    ``targets`` int64 [N]: their true ids; ``target_class`` uint8 [N]: their classes;
    ``num_maskable``: how many tokens could have been chosen (int or 0-d tensor);
    ``masking_ratio``: the ratio asked, as a fraction of the maskable tokens, averaged over rows;
    ``loss_weights`` float32 [N]: what each predicted token's loss counts; None: all alike;
    ``divisor``: what the batch adds to the number that the step's sum of weighted losses is divided by
    (number or 0-d tensor); None: its predicted tokens, see :attr:`loss_divisor`;
    ``cu_seqlens``, ``attention_mask``, ``token_type_ids`` as in :class:`Rows`.
    """

    input_ids: Array
    labels: Array
    positions: Array
    targets: Array
    target_class: Array
    num_maskable: Any
    masking_ratio: float
    cu_seqlens: Array
    attention_mask: Array | None = None
    loss_weights: Array | None = None
    divisor: Any = None
    token_type_ids: Array | None = None

    @property
    def num_predicted(self) -> int:
        return self.positions.shape[0]

    @property
    def loss_divisor(self) -> Any:
        """The batch's part of what the step's sum of weighted losses is divided by."""
        return self.num_predicted if self.divisor is None else self.divisor

    def inputs(self) -> dict[str, torch.Tensor]:
        """The model's keyword inputs: ``input_ids``, ``attention_mask`` where it is known, and
        ``token_type_ids`` where some token of the batch is not of segment 0.

        Models take segment 0 for granted, and many are given none, though their tokenizers count segments: a
        batch of a single segment is one for all of them. Where rows have more, and the model's forward
        takes no ``token_type_ids``, leave the column out of the rows.

        Documents packed into one row see each other: nothing here keeps them apart.
        """
        import torch

        names = ("input_ids", "attention_mask", "token_type_ids")
        known = {name: getattr(self, name) for name in names}
        return {name: torch.as_tensor(value) for name, value in known.items() if value is not None}

    def to(self, device: torch.device | str) -> MaskedBatch:
        """The same batch as torch tensors on ``device`` (a copy that does not wait for the host)."""
        moved = (
            "input_ids", "labels", "positions", "targets", "target_class", "cu_seqlens",
            "attention_mask", "loss_weights", "token_type_ids",
        )  # fmt: skip
        arrays = send_all({name: getattr(self, name) for name in moved}, device)
        return MaskedBatch(
            num_maskable=self.num_maskable,
            masking_ratio=self.masking_ratio,
            divisor=self.divisor,
            **arrays,
        )


@dataclass(frozen=True, slots=True)
class ClassTally:
    """Sums over the predicted tokens of one optimiser step, per class, pooled over all ranks.

    ``loss_sum`` float64 [C] in nats; ``count`` int64 [C]; ``correct`` int64 [C].
    """

    loss_sum: Array
    count: Array
    correct: Array


def send(array: Array, device: torch.device | str) -> torch.Tensor:
    """``array`` on ``device``; to CUDA through pinned memory, so that the host goes on meanwhile.

    What comes back to the host is waited for: nothing else says when it may be read.
    """
    import torch

    device = torch.device(device)
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def send_all(arrays: Mapping[str, Array | None], device: torch.device | str) -> dict[str, Any]:
    """What :func:`send` makes of each, None of None; to CUDA all numpy arrays go as one piece of memory.

    A copy of its own, and memory pinned for it, take the host longer than the bytes of a small batch.
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        # A small batch is masked in as little time as twenty general calls take.
        of_numpy = torch.from_numpy
        return {
            n: of_numpy(a) if isinstance(a, np.ndarray) else None if a is None else send(a, device)
            for n, a in arrays.items()
        }
    on_cuda = device.type == "cuda"
    packed = {n: a for n, a in arrays.items() if on_cuda and isinstance(a, np.ndarray)}
    alone = {n: a for n, a in arrays.items() if n not in packed}
    sent = {n: None if a is None else send(a, device) for n, a in alone.items()}
    if packed:
        pinned = torch.empty(packed_size(packed.values()), dtype=torch.uint8, pin_memory=True)
        pack(packed.values(), pinned.numpy())
        there = pinned.to(device, non_blocking=True)
        sent |= dict(zip(packed, unpack(there, packed.values()), strict=True))
    return sent


_ALIGNED = 512
"""Bytes of which a multiple lies before each array that is sent with others: torch aligns memory so."""


def _ends(arrays: Iterable[np.ndarray]) -> list[int]:
    """Up to which byte each of the arrays takes up memory that they share; there the next one begins."""
    return list(accumulate(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays))


def packed_size(arrays: Iterable[np.ndarray]) -> int:
    """Bytes of memory that holds all of the arrays."""
    return max(_ends(arrays), default=0)


def pack(arrays: Collection[np.ndarray], memory: np.ndarray) -> None:
    """Copy the arrays into uint8 ``memory``, one after the other."""
    for array, start in zip(arrays, [0, *_ends(arrays)], strict=False):
        part = memory[start : start + array.nbytes]
        part.view(array.dtype).reshape(array.shape)[...] = array


def unpack(memory: torch.Tensor, arrays: Collection[np.ndarray]) -> list[torch.Tensor]:
    """What uint8 ``memory`` was packed with, as tensors that are no views: a compiler asks views for more."""
    import torch

    parts = []
    for array, start in zip(arrays, [0, *_ends(arrays)], strict=False):
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        part: Any = torch.empty(0, dtype=dtype, device=memory.device)
        parts.append(part.set_(memory.untyped_storage(), start // array.itemsize, array.shape))
    return parts
