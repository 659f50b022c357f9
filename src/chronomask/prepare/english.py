"""The bundled tagger's network, evaluated word by word type by word type.

spaCy evaluates a pipeline anew for every token. What a token of this architecture contributes to
its neighbours in the first layer depends on its own spelling alone, so it is computed once for every
different word; a token then costs three additions of vectors and one small matrix product. The
classes are those that spaCy's own evaluation gives, up to ties within rounding, and every token's is a
function of its document alone: no sum's order depends on what else is in the batch.

May enter: evaluating this one architecture. Which words there are is spaCy's tokenizer's affair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from chronomask.prepare.words import ChunkWords
from chronomask.types import UPOS_CLASSES

if TYPE_CHECKING:
    from spacy.language import Language

__all__ = ["PAD", "EnglishNetwork"]

PAD = 2
"""Word type 0 this many times between documents, as spaCy pads them: the depth of the network."""

_FEATURES = ("ORTH", "LOWER", "PREFIX", "SUFFIX", "SHAPE")
_NEEDED = ("LOWER", "NORM", "PREFIX", "SUFFIX", "SHAPE", "IS_SPACE")
_LAYERS = [*["hashembed"] * 5, *["maxout", "layernorm"] * 3]


class EnglishNetwork:
    """The network of a pipeline made with ``tagger/config.cfg``, whatever its sizes.

    ``learn`` finds the words of new chunks and numbers their types; ``classify`` gives the classes of
    a sequence of types. :meth:`of` says whether a pipeline is one.
    """

    def __init__(self, pipeline: Language, parts: Sequence[Any], to_class: np.ndarray) -> None:
        self._pipeline = pipeline
        # Every new word would be asked whether it is like a number, an address, …: half of the time.
        vocab: Any = pipeline.vocab
        getters = vocab.lex_attr_getters
        vocab.lex_attr_getters = {
            attribute: getters[attribute] for attribute in map(_attribute_id, _NEEDED)
        }
        embeds, mix, mix_norm, first, first_norm, second, second_norm, out = parts
        self._hashes = [layer.attrs["seed"] for layer in embeds]
        self._sizes = [layer.get_param("E").shape[0] for layer in embeds]
        self._to_class = to_class
        width = mix.get_param("W").shape[0]
        self._width = width
        # The mixing layer is linear in the table rows, so the tables go through it beforehand.
        weights = _pieces_first(mix.get_param("W"))
        self._tables = [
            np.ascontiguousarray(
                layer.get_param("E") @ weights[:, k * width : (k + 1) * width].T, np.float32
            )
            for k, layer in enumerate(embeds)
        ]
        self._mix = (_pieces_first(mix.get_param("b")), *_scale(mix_norm))
        self._first = _by_input(first, width)
        self._after_first = (_pieces_first(first.get_param("b")), *_scale(first_norm))
        self._second = (
            _pieces_first(second.get_param("W")),
            _pieces_first(second.get_param("b")),
            *_scale(second_norm),
            np.ascontiguousarray(out.get_param("W")),
            np.ascontiguousarray(out.get_param("b")),
        )
        self.forget()

    @classmethod
    def of(cls, pipeline: Language, to_class: np.ndarray) -> EnglishNetwork | None:
        """The network of a pipeline, None if it is of another architecture.

        ``to_class`` uint8: the class of each spaCy part-of-speech symbol.
        """
        from spacy.tokenizer import Tokenizer

        if type(pipeline.tokenizer) is not Tokenizer or len(pipeline.pipe_names) != 1:
            return None
        (name,) = pipeline.pipe_names
        if pipeline.get_pipe_meta(name).factory != "morphologizer":
            return None
        component: Any = pipeline.get_pipe(name)
        layers = [layer for layer in component.model.walk() if layer.param_names]
        named = {kind: [m for m in layers if m.name == kind] for kind in {*_LAYERS, "softmax"}}
        embeds, maxouts, norms = named["hashembed"], named["maxout"], named["layernorm"]
        if [len(x) for x in (embeds, maxouts, norms, named["softmax"])] != [5, 3, 3, 1]:
            return None
        if len(layers) != 12 or [e.attrs["column"] for e in embeds] != [0, 1, 2, 3, 4]:
            return None
        features = [m for m in component.model.walk() if m.name == "extract_features"]
        windows = [m for m in component.model.walk() if m.name == "expand_window"]
        if [m.attrs.get("window_size") for m in windows] != [1, 1] or len(features) != 1:
            return None
        mix, first, second = maxouts
        width = mix.get_param("W").shape[0]
        shapes = [m.get_param("W").shape[::2] for m in maxouts]
        if shapes != [(width, 5 * width), (width, 3 * width), (width, 3 * width)]:
            return None
        if _columns_of(features[0]) != _FEATURES:
            return None
        classes = _classes_of_labels(component.labels, to_class)
        parts = (embeds, mix, norms[0], first, norms[1], second, norms[2], named["softmax"][0])
        return cls(pipeline, parts, classes)

    def forget(self) -> None:
        """Drop every word type learnt so far."""
        self._type_of: dict[int, int] = {}
        pieces = self._after_first[0].size
        self._embedded = np.zeros((1, self._width), np.float32)
        self._projected = np.zeros((1, 3, pieces), np.float32)
        self._num_types = 1  # type 0 is padding: nothing

    @property
    def num_types(self) -> int:
        """Different words known by now, padding included."""
        return self._num_types

    def learn(self, texts: Sequence[str], at_start: Sequence[bool]) -> ChunkWords:
        """Words of chunks; ``at_start``: the chunk's white space begins its document."""
        columns: list[int | str] = [*_FEATURES, "IDX", "LENGTH", "IS_SPACE"]
        starts = [int(t[:1] == " " and not first) for t, first in zip(texts, at_start, strict=True)]
        bodies = [text[start:] for text, start in zip(texts, starts, strict=True)]
        # Chunks that end in visible characters share one call, a space between them.
        together = [k for k, body in enumerate(bodies) if body and not body[-1:].isspace()]
        alone = sorted(set(range(len(texts))) - set(together))
        groups = [together, *([k] for k in alone)]
        tables, owners = [], []
        with self._pipeline.memory_zone():
            for group in groups:
                lengths = np.fromiter((len(bodies[k]) + 1 for k in group), np.int64, len(group))
                begins = np.cumsum(lengths) - lengths
                document = self._pipeline.tokenizer(" ".join(bodies[k] for k in group))
                table = document.to_array(columns).reshape(-1, len(columns))
                place = table[:, 5].astype(np.int64)
                which = np.searchsorted(begins, place, side="right") - 1
                owner = np.asarray(group, np.int64)[which] if group else which
                shift = np.asarray(starts, np.int64)[owner] - begins[which] if group else which
                table[:, 5] = (place + shift).astype(np.uint64)
                tables.append(table)
                owners.append(owner)
        table, owner = np.concatenate(tables), np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        table, owner = table[order], owner[order]
        begin = table[:, 5].astype(np.int64)
        return ChunkWords(
            counts=np.bincount(owner, minlength=len(texts)),
            starts=begin,
            ends=begin + table[:, 6].astype(np.int64),
            visible=table[:, 7] == 0,
            types=self._types(table[:, :5]),
        )

    def _types(self, features: np.ndarray) -> np.ndarray:
        """int64: the type of every word, new ones embedded; ``features`` uint64 [W, 5]."""
        type_of = self._type_of
        new: list[int] = []
        types = np.empty(len(features), np.int64)
        for k, key in enumerate(features[:, 0].tolist()):
            number = type_of.get(key)
            if number is None:
                number = type_of[key] = len(type_of) + 1
                new.append(k)
            types[k] = number
        if new:
            self._embed(features[new])
        return types

    def _embed(self, features: np.ndarray) -> None:
        from thinc.api import NumpyOps

        hashes = NumpyOps().hash
        rows = np.stack(
            [
                hashes(np.ascontiguousarray(features[:, k]), seed) % np.uint32(size)
                for k, (seed, size) in enumerate(zip(self._hashes, self._sizes, strict=True))
            ],
            axis=1,
        ).astype(np.int64)
        first, stop = self._num_types, self._num_types + len(features)
        if stop > len(self._embedded):
            room = max(stop, 2 * len(self._embedded))
            self._embedded = _grown(self._embedded, first, room)
            self._projected = _grown(self._projected, first, room)
        embed: Any = _embed_types
        embed(
            rows, *self._tables, *self._mix, self._first,
            self._embedded[first:stop], self._projected[first:stop],
        )  # fmt: skip
        self._num_types = stop

    def classify(self, types: np.ndarray) -> np.ndarray:
        """uint8 [W]: classes of words by type; documents have :data:`PAD` zeros around them."""
        labels = _best_labels(
            types, self._projected, self._embedded, *self._after_first, *self._second
        )
        return self._to_class[labels]


def _attribute_id(name: str) -> int:
    from spacy.attrs import IDS

    known: Any = IDS
    return int(known[name])


def _columns_of(layer: Any) -> tuple[str, ...]:
    name_of = {_attribute_id(name): name for name in (*_FEATURES, *_NEEDED)}
    columns = layer.attrs["columns"]
    return tuple(c if isinstance(c, str) else name_of.get(c, "") for c in columns)


def _classes_of_labels(labels: Sequence[str], to_class: np.ndarray) -> np.ndarray:
    """uint8: the class of each label such as "POS=NOUN" or "Number=Sing|POS=NOUN"."""
    from spacy.parts_of_speech import IDS

    number_of: Any = IDS
    tags = [re.search(r"(?:^|\|)POS=(\w+)", label) for label in labels]
    classes = [int(to_class[number_of[tag[1]]]) if tag else 0 for tag in tags]
    assert max(classes, default=0) < len(UPOS_CLASSES)
    return np.asarray(classes, np.uint8)


def _pieces_first(weights: np.ndarray) -> np.ndarray:
    """[O, P, …] as float32 [P · O, …]: the outputs' first candidates, then their second ones."""
    moved = np.swapaxes(weights, 0, 1)
    return np.ascontiguousarray(moved.reshape(-1, *weights.shape[2:]), np.float32)


def _by_input(layer: Any, width: int) -> np.ndarray:
    """float32 [3, width, P · O]: weights of the word before, the word itself, the word after."""
    weights = _pieces_first(layer.get_param("W"))
    return np.ascontiguousarray(weights.T.reshape(3, width, -1), np.float32)


def _scale(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(norm.get_param("G")), np.ascontiguousarray(norm.get_param("b"))


def _grown(array: np.ndarray, used: int, room: int) -> np.ndarray:
    larger = np.zeros((room, *array.shape[1:]), array.dtype)
    larger[:used] = array[:used]
    return larger


_MATHS = {"contract", "reassoc", "nsz", "arcp"}
"""Freedoms of the compiler: the code is the same for every row, so equal rows stay equal."""


@njit(cache=True, nogil=True, fastmath=_MATHS, inline="always")
def _normalise(values: Any, scale: Any, shift: Any) -> None:
    """Layer normalisation in place, with spaCy's epsilon."""
    size = values.size
    mean = np.float32(0)
    for k in range(size):
        mean += values[k]
    mean /= np.float32(size)
    variance = np.float32(0)
    for k in range(size):
        variance += (values[k] - mean) * (values[k] - mean)
    factor = np.float32(1) / np.sqrt(variance / np.float32(size) + np.float32(1e-8))
    for k in range(size):
        values[k] = (values[k] - mean) * factor * scale[k] + shift[k]


@njit(cache=True, nogil=True, fastmath=_MATHS)
def _embed_types(
    rows: Any, table_0: Any, table_1: Any, table_2: Any, table_3: Any, table_4: Any,
    bias: Any, scale: Any, shift: Any, first: Any, embedded: Any, projected: Any,
) -> None:  # fmt: skip
    """Fill ``embedded`` [N, W] and ``projected`` [N, 3, P · W] for words with table ``rows`` [N, 5, 4]."""
    num, width = embedded.shape
    num_pieces = bias.size // width
    mixed = np.empty(bias.size, np.float32)
    for n in range(num):
        mixed[:] = bias
        for k in range(4):
            a, b = table_0[rows[n, 0, k]], table_1[rows[n, 1, k]]
            c, d = table_2[rows[n, 2, k]], table_3[rows[n, 3, k]]
            e = table_4[rows[n, 4, k]]
            for j in range(bias.size):
                mixed[j] += a[j] + b[j] + c[j] + d[j] + e[j]
        for j in range(width):
            best = mixed[j]
            for piece in range(1, num_pieces):
                best = max(best, mixed[piece * width + j])
            embedded[n, j] = best
        _normalise(embedded[n], scale, shift)
        for side in range(3):
            out = projected[n, side]
            out[:] = 0
            for k in range(width):
                value, weights = embedded[n, k], first[side, k]
                for j in range(out.size):
                    out[j] += value * weights[j]


_BLOCK = 8
"""Words of one turn of the matrix product."""


@njit(cache=True, nogil=True, fastmath=_MATHS)
def _multiply(window: Any, weights: Any, bias: Any, out: Any) -> None:
    """``out`` [8, O]: ``bias`` plus ``weights`` [O, 3 · W] times each word's row and its neighbours'.

    Four words and two outputs at a time: eight sums that stay in registers.
    """
    size, num_inputs = weights.shape
    width = num_inputs // 3
    zero = np.float32(0)
    for r in range(0, _BLOCK, 4):
        for j in range(0, size, 2):
            a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
            for k in range(num_inputs):
                a, b = weights[j, k], weights[j + 1, k]
                x0, x1 = window[r * width + k], window[(r + 1) * width + k]
                x2, x3 = window[(r + 2) * width + k], window[(r + 3) * width + k]
                a0, a1, a2, a3 = a0 + a * x0, a1 + a * x1, a2 + a * x2, a3 + a * x3
                b0, b1, b2, b3 = b0 + b * x0, b1 + b * x1, b2 + b * x2, b3 + b * x3
            out[r, j], out[r, j + 1] = a0 + bias[j], b0 + bias[j + 1]
            out[r + 1, j], out[r + 1, j + 1] = a1 + bias[j], b1 + bias[j + 1]
            out[r + 2, j], out[r + 2, j + 1] = a2 + bias[j], b2 + bias[j + 1]
            out[r + 3, j], out[r + 3, j + 1] = a3 + bias[j], b3 + bias[j + 1]


@njit(cache=True, nogil=True, fastmath=_MATHS)
def _best_labels(
    types: Any, projected: Any, embedded: Any,
    bias_1: Any, scale_1: Any, shift_1: Any,
    weights_2: Any, bias_2: Any, scale_2: Any, shift_2: Any,
    weights_out: Any, bias_out: Any,
) -> Any:  # fmt: skip
    """uint8 [W]: the best label of every word."""
    num, width, size = types.size, embedded.shape[1], bias_1.size
    num_pieces = size // width
    hidden = np.zeros((num + 2 + _BLOCK) * width, np.float32)  # rows of zeros before and after
    pieces = np.empty(size, np.float32)
    for n in range(num):
        before = projected[types[n - 1] if n else 0, 0]
        itself = projected[types[n], 1]
        after = projected[types[n + 1] if n + 1 < num else 0, 2]
        for j in range(size):
            pieces[j] = (before[j] + itself[j]) + (after[j] + bias_1[j])
        out = hidden[(n + 1) * width : (n + 2) * width]
        for j in range(width):
            best = pieces[j]
            for piece in range(1, num_pieces):
                best = max(best, pieces[piece * width + j])
            out[j] = best
        _normalise(out, scale_1, shift_1)
        for j in range(width):
            out[j] += embedded[types[n], j]
    labels = np.empty(num, np.uint8)
    block = np.empty((_BLOCK, size), np.float32)
    last = np.empty(width, np.float32)
    for start in range(0, num, _BLOCK):
        _multiply(hidden[start * width : (start + _BLOCK + 2) * width], weights_2, bias_2, block)
        for r in range(min(_BLOCK, num - start)):
            row = block[r]
            for j in range(width):
                best = row[j]
                for piece in range(1, num_pieces):
                    best = max(best, row[piece * width + j])
                last[j] = best
            _normalise(last, scale_2, shift_2)
            for j in range(width):
                last[j] += hidden[(start + r + 1) * width + j]
            best_label, most = 0, np.float32(-np.inf)
            for label in range(bias_out.size):
                weights = weights_out[label]
                score = np.float32(0)
                for j in range(width):
                    score += last[j] * weights[j]
                score += bias_out[label]
                if score > most:
                    best_label, most = label, score
            labels[start + r] = best_label
    return labels
