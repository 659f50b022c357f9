"""The bundled tagger's network, evaluated word by word type by word type.

spaCy evaluates a pipeline anew for every token. What a token of this architecture contributes to
its neighbours in the first layer depends on its own spelling alone, so it is computed once for every
different word; a token then costs three additions of vectors and one small matrix product. The
classes are those that spaCy's own evaluation gives, up to ties within rounding, and every token's is a
function of its document alone: no sum's order depends on what else is in the batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from chronomask.compiled import KEPT
from chronomask.prepare.words.english.words import (
    FEATURES,
    EnglishWords,
    attribute_id,
    features_of,
    spells_as_spacy,
)
from chronomask.prepare.words.memo import Growing, Numbers
from chronomask.prepare.words.tagger import ChunkWords
from chronomask.types import UPOS_CLASSES

if TYPE_CHECKING:
    from spacy.language import Language

__all__ = ["PAD", "EnglishNetwork"]

PAD = 2
"""Word type 0 this many times between documents, as spaCy pads them: the depth of the network."""

_ROOM = 1 << 18  # word types that there is room for at first: those of as many chunks
_LAYERS = [*["hashembed"] * 5, *["maxout", "layernorm"] * 3]


class EnglishNetwork:
    """The network of a pipeline made with ``tagger/config.cfg``, whatever its sizes.

    ``learn`` finds the words of new chunks and numbers their types; ``classify`` gives the classes of
    a sequence of types. :meth:`of` says whether a pipeline is one.
    """

    def __init__(self, pipeline: Language, parts: Sequence[Any], to_class: np.ndarray) -> None:
        """``parts``: the pipeline's layers as :meth:`of` finds them; ``to_class``: of each label."""
        self._words = EnglishWords(pipeline)
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
        self._type_of = Numbers[str](first=1)
        # Memory that is not written yet costs nothing; copying it to make room would.
        self._embedded = Growing(np.float32, (width,), room=_ROOM)
        self._projected = Growing(np.float32, self._first.shape[::2], room=_ROOM)
        self.forget()

    @classmethod
    def of(cls, pipeline: Language, to_class: np.ndarray) -> EnglishNetwork | None:
        """The network of a pipeline, None if it is of another architecture.

        ``to_class`` uint8: the class of each spaCy part-of-speech symbol.
        """
        from spacy.tokenizer import Tokenizer

        tokenizer: Any = pipeline.tokenizer
        if type(tokenizer) is not Tokenizer or len(pipeline.pipe_names) != 1:
            return None
        if any("," in case for case in tokenizer.rules):
            return None  # chunks end before commas
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
        shapes = [m.get_param("W").shape for m in maxouts]
        if shapes[0][::2] != (width, 5 * width) or shapes[1:] != 2 * [(width, 2, 3 * width)]:
            return None
        if _columns_of(features[0]) != FEATURES or not spells_as_spacy(pipeline.vocab):
            return None
        classes = _classes_of_labels(component.labels, to_class)
        parts = (embeds, mix, norms[0], first, norms[1], second, norms[2], named["softmax"][0])
        return cls(pipeline, parts, classes)

    def forget(self) -> None:
        """Drop every word type learnt so far."""
        self._type_of.clear()
        for kept in (self._embedded, self._projected):
            kept.clear()
            kept.extend(1)[...] = 0  # type 0 is padding: nothing

    def learn(self, texts: Sequence[str], at_start: Sequence[bool]) -> ChunkWords:
        """Words of chunks; ``at_start``: the chunk's white space begins its document."""
        found = self._words.find(texts, at_start)
        lengths = np.fromiter(map(len, found.words), np.int64, len(found.words))
        space = np.fromiter(map(str.isspace, found.words), bool, len(found.words))
        return ChunkWords(
            counts=found.counts,
            starts=found.starts,
            ends=found.starts + lengths,
            visible=~space,
            types=self._types(found.words),
        )

    def _types(self, words: Sequence[str]) -> np.ndarray:
        """int64 [W]: the type of every word, new ones embedded."""
        types = np.fromiter(map(self._type_of.__getitem__, words), np.int64, len(words))
        if self._type_of.new:
            self._embed(features_of(self._type_of.new))
            self._type_of.new = []
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
        embed: Any = _embed_types
        embed(
            rows, *self._tables, *self._mix, self._first,
            self._embedded.extend(len(rows)), self._projected.extend(len(rows)),
        )  # fmt: skip

    def classify(self, types: np.ndarray) -> np.ndarray:
        """uint8 [W]: classes of words by type; documents have :data:`PAD` zeros around them."""
        labels = _best_labels(
            types, self._projected.rows, self._embedded.rows, *self._after_first, *self._second
        )
        return self._to_class[labels]


def _columns_of(layer: Any) -> tuple[str, ...]:
    name_of = {attribute_id(name): name for name in FEATURES}
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


_MATHS = {"contract", "reassoc", "nsz", "arcp"}
"""Freedoms of the compiler: the code is the same for every row, so equal rows stay equal."""


@njit(cache=KEPT, nogil=True, fastmath=_MATHS, inline="always")
def _larger_normalised(pieces: Any, scale: Any, shift: Any, out: Any) -> None:
    """``out`` [W]: the larger of two candidates each (``pieces`` [2 · W]), layer-normalised."""
    size = out.size
    for k in range(size):
        a, b = pieces[k], pieces[size + k]
        out[k] = a if a > b else b
    _normalise(out, scale, shift)


@njit(cache=KEPT, nogil=True, fastmath=_MATHS, inline="always")
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


@njit(cache=KEPT, nogil=True, fastmath=_MATHS)
def _embed_types(
    rows: Any, table_0: Any, table_1: Any, table_2: Any, table_3: Any, table_4: Any,
    bias: Any, scale: Any, shift: Any, first: Any, embedded: Any, projected: Any,
) -> None:  # fmt: skip
    """Fill ``embedded`` [N, W] and ``projected`` [N, 3, P · W] for words with table ``rows`` [N, 5, 4]."""
    num, width = embedded.shape
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
            most = mixed[j]
            for start in range(width, bias.size, width):
                most = max(most, mixed[start + j])
            embedded[n, j] = most
        _normalise(embedded[n], scale, shift)
        for side in range(3):
            out = projected[n, side]
            out[:] = 0
            for k in range(width):
                value, weights = embedded[n, k], first[side, k]
                for j in range(out.size):
                    out[j] += value * weights[j]


_BLOCK = 12
"""Words of one turn of the matrix product."""


@njit(cache=KEPT, nogil=True, fastmath=_MATHS)
def _multiply(window: Any, weights: Any, bias: Any, out: Any) -> None:
    """``out`` [12, O]: ``bias`` plus ``weights`` [O, 3 · W] times each word's row and its neighbours'.

    Six words and two outputs at a time: twelve sums that stay in registers.
    """
    size, num_inputs = weights.shape
    width = num_inputs // 3
    zero = np.float32(0)
    for r in range(0, _BLOCK, 6):
        for j in range(0, size, 2):
            a0, a1, a2, a3, a4, a5 = zero, zero, zero, zero, zero, zero
            b0, b1, b2, b3, b4, b5 = zero, zero, zero, zero, zero, zero
            for k in range(num_inputs):
                a, b = weights[j, k], weights[j + 1, k]
                x0, x1 = window[r * width + k], window[(r + 1) * width + k]
                x2, x3 = window[(r + 2) * width + k], window[(r + 3) * width + k]
                x4, x5 = window[(r + 4) * width + k], window[(r + 5) * width + k]
                a0, a1, a2, a3 = a0 + a * x0, a1 + a * x1, a2 + a * x2, a3 + a * x3
                b0, b1, b2, b3 = b0 + b * x0, b1 + b * x1, b2 + b * x2, b3 + b * x3
                a4, a5, b4, b5 = a4 + a * x4, a5 + a * x5, b4 + b * x4, b5 + b * x5
            first, second = bias[j], bias[j + 1]
            out[r, j], out[r, j + 1] = a0 + first, b0 + second
            out[r + 1, j], out[r + 1, j + 1] = a1 + first, b1 + second
            out[r + 2, j], out[r + 2, j + 1] = a2 + first, b2 + second
            out[r + 3, j], out[r + 3, j + 1] = a3 + first, b3 + second
            out[r + 4, j], out[r + 4, j + 1] = a4 + first, b4 + second
            out[r + 5, j], out[r + 5, j + 1] = a5 + first, b5 + second


@njit(cache=KEPT, nogil=True, fastmath=_MATHS)
def _best_labels(
    types: Any, projected: Any, embedded: Any,
    bias_1: Any, scale_1: Any, shift_1: Any,
    weights_2: Any, bias_2: Any, scale_2: Any, shift_2: Any,
    weights_out: Any, bias_out: Any,
) -> Any:  # fmt: skip
    """uint8 [W]: the best label of every word."""
    num, width, size = types.size, embedded.shape[1], bias_1.size
    # What the first layer makes of the word before a block, its words and the word after.
    window = np.zeros((_BLOCK + 2) * width, np.float32)
    pieces, row = np.empty(size, np.float32), np.empty(width, np.float32)
    labels = np.empty(num, np.uint8)
    block = np.empty((_BLOCK, size), np.float32)
    for start in range(0, num, _BLOCK):
        if start:
            window[: 2 * width] = window[_BLOCK * width :]
        for r in range(2 if start else 1, _BLOCK + 2):
            n = start + r - 1
            if n >= num:
                window[r * width :] = 0
                break
            before = projected[types[n - 1] if n else 0, 0]
            itself = projected[types[n], 1]
            after = projected[types[n + 1] if n + 1 < num else 0, 2]
            for j in range(size):
                pieces[j] = (before[j] + itself[j]) + (after[j] + bias_1[j])
            _larger_normalised(pieces, scale_1, shift_1, row)
            itself = embedded[types[n]]
            for j in range(width):
                window[r * width + j] = row[j] + itself[j]
        _multiply(window, weights_2, bias_2, block)
        for r in range(min(_BLOCK, num - start)):
            _larger_normalised(block[r], scale_2, shift_2, row)
            for j in range(width):
                row[j] += window[(r + 1) * width + j]
            best_label, most = 0, np.float32(-np.inf)
            for label in range(bias_out.size):
                weights = weights_out[label]
                score = np.float32(0)
                for j in range(width):
                    score += row[j] * weights[j]
                score += bias_out[label]
                if score > most:
                    best_label, most = label, score
            labels[start + r] = best_label
    return labels
