"""Pseudo-log-likelihood: how likely a masked language model finds a sentence, one masked copy per token.

A sentence of T tokens with M of them predicted becomes M copies of T tokens; all copies of all sentences
are sorted by length and run in batches, and the head runs on the one position of each copy that counts.

``original`` (Salazar et al., ACL 2020): each token is predicted with itself masked. A word cut into
pieces then looks easy, since its other pieces give it away. ``within_word_l2r`` (Kauf and Ivanova,
ACL 2023): the pieces of the same word to its right are masked too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from chronomask.config import Config
from chronomask.errors import UsageError
from chronomask.evaluate.device import Device, Precision, autocast, device_of
from chronomask.evaluate.progress import Progress
from chronomask.evaluate.subject import Subject
from chronomask.model.head import logits_at, token_losses

__all__ = [
    "PseudoLikelihood",
    "Score",
    "Sentences",
    "check_pseudo",
    "encode_sentences",
    "pseudo_log_likelihood",
]

Score = Literal["within_word_l2r", "original"]
_TEXTS_AT_ONCE = 4096


class PseudoLikelihood(Config):
    """What decides a pseudo-log-likelihood, and how fast it is had."""

    score: Score = "within_word_l2r"
    """which tokens are masked while one is predicted"""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """tokens of a forward pass, over all its masked copies; none: 2048 on the host (what stays in its
    caches), 65536 on a CUDA device"""
    precision: Precision = "float32"
    """bfloat16: matrix products in half precision"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """at most so many examples of each part, for a quick look; none: all"""


@dataclass(frozen=True, slots=True)
class Sentences:
    """Token ids of N sentences, end to end, special tokens included.

    ``ids`` int64 [sum of lengths]; ``word`` int64, the same shape: number of the word a token belongs to,
    −1 for special tokens; ``bounds`` int64 [N + 1].
    """

    ids: NDArray[np.int64]
    word: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def num_scored(self) -> NDArray[np.int64]:
        """int64 [N]: tokens of each sentence that are predicted."""
        scored = np.concatenate(([0], np.cumsum(self.word >= 0)))
        return np.diff(scored[self.bounds])


def check_pseudo(model: Subject, config: PseudoLikelihood) -> None:
    """Raise UsageError where no pseudo-log-likelihood can be had: no head, mask token or word bounds."""
    device_of(config.device)
    model.check_head(AutoModelForMaskedLM)
    model.masked_lm()  # its head is among the weights
    tokenizer = model.tokenizer
    if not isinstance(tokenizer.mask_token_id, int):
        raise UsageError(f"the tokenizer of {model.name} has no mask token: nothing can be masked")
    if not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer of {model.name} does not tell which tokens make a word: "
            "save it as a fast tokenizer (tokenizer.json)"
        )


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> tuple[Sentences, NDArray[np.int64]]:
    """Texts as tokens, and for each sentence the text it comes from int64 [N].

    A text of more than ``max_length`` tokens becomes several sentences.
    """
    ids: list[list[int]] = []
    words: list[list[int]] = []
    source: list[int] = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer(
            list(texts[begin : begin + _TEXTS_AT_ONCE]),
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        special: Any = encoded["special_tokens_mask"]
        origin: Any = encoded.get("overflow_to_sample_mapping", range(len(special)))
        for number, (row, marks) in enumerate(zip(encoded["input_ids"], special, strict=True)):
            ids.append(row)
            found = zip(encoded.word_ids(number), marks, strict=True)
            words.append([-1 if mark or word is None else word for word, mark in found])
            source.append(begin + origin[number])
    bounds = np.concatenate(([0], np.cumsum([len(row) for row in ids]))).astype(np.int64)
    flat = [np.array([t for row in rows for t in row], np.int64) for rows in (ids, words)]
    return Sentences(flat[0], flat[1], bounds), np.array(source, np.int64)


@torch.inference_mode()
def pseudo_log_likelihood(
    model: PreTrainedModel,
    sentences: Sentences,
    tokenizer: PreTrainedTokenizerBase,
    config: PseudoLikelihood,
    *,
    label: str,
    progress: bool,
) -> NDArray[np.float64]:
    """Σ log p(token | the rest, masked as ``config.score`` says), in nats, [N]; 0 without tokens.

    ``model``: in evaluation mode, on its device.
    """
    device = next(model.parameters()).device
    mask_token_id: Any = tokenizer.mask_token_id
    pad_token_id: Any = tokenizer.pad_token_id or 0
    copies = _Copies.of(sentences, config.score)
    batch_tokens = config.batch_tokens or (2048 if device.type == "cpu" else 65536)
    log_p = np.zeros(copies.target.size)
    with Progress(label, copies.target.size, "masked copies", progress) as shown:
        for index in _batches(copies.length, batch_tokens):
            ids, real, position, target = copies.batch(
                sentences, index, mask_token_id, pad_token_id
            )
            inputs = {} if real.all() else {"attention_mask": _move(real.astype(np.int64), device)}
            with autocast(device, config.precision):
                logits = logits_at(model, _move(ids, device), _move(position, device), inputs)
            loss, _ = token_losses(logits.float(), _move(target, device))
            log_p[index] = -loss.double().cpu().numpy()
            shown.advance(index.size)
    total = np.zeros(sentences.bounds.size - 1)
    np.add.at(total, copies.sentence, log_p)
    return total


@dataclass(frozen=True, slots=True)
class _Copies:
    """The masked copies of all sentences: one per predicted token. All int64 [copies]."""

    sentence: NDArray[np.int64]
    target: NDArray[np.int64]
    """index of the predicted token in ``Sentences.ids``"""
    end: NDArray[np.int64]
    """first token after ``target`` that is not masked"""
    length: NDArray[np.int64]

    @classmethod
    def of(cls, sentences: Sentences, score: Score) -> _Copies:
        lengths = np.diff(sentences.bounds)
        sentence = np.repeat(np.arange(lengths.size), lengths)
        word = sentences.word
        target = np.flatnonzero(word >= 0)
        end = target + 1
        if score == "within_word_l2r":
            last = np.ones(word.size, bool)  # of its word
            last[:-1] = (word[1:] != word[:-1]) | (sentence[1:] != sentence[:-1])
            ends = np.flatnonzero(last) + 1
            end = ends[np.searchsorted(ends, target, side="right")]
        return cls(sentence[target], target, end, lengths[sentence[target]])

    def batch(
        self, sentences: Sentences, index: NDArray[np.int64], mask_id: int, pad_id: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Masked ids and which are real, both [B, T]; flat position and id of each target, [B]."""
        begin = sentences.bounds[self.sentence[index]][:, None]
        place = np.arange(self.length[index].max())
        real = place < self.length[index][:, None]
        source = np.where(real, begin + place, 0)
        hidden = (
            real & (source >= self.target[index][:, None]) & (source < self.end[index][:, None])
        )
        ids = np.where(real, sentences.ids[source], pad_id)
        ids[hidden] = mask_id
        position = np.arange(index.size) * place.size + self.target[index] - begin[:, 0]
        return ids, real, position, sentences.ids[self.target[index]]


def _batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Copies of like length, the longest first: at most ``batch_tokens`` tokens, at least one copy."""
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < order.size:
        size = max(1, batch_tokens // int(lengths[order[begin]]))
        yield order[begin : begin + size]
        begin += size


def _move(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
