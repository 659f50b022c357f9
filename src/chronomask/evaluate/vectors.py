"""A text as one vector, without training: the mean of the encoder's last hidden states over its tokens.

All tokens count, the special ones included, as in the mean pooling of Reimers and Gurevych (EMNLP 2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.evaluate.batches import Encoded, by_tokens
from chronomask.evaluate.subject import Subject
from chronomask.progress import Progress
from chronomask.types import Device, Precision, send

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Pooling", "check_encoder", "have_length", "unit_vectors"]


class Pooling(Config):
    """How texts become vectors. Layer and pooling are fixed: the last layer's mean over all tokens."""

    max_length: Annotated[int, Field(ge=8)] = 512
    """tokens of a text, special ones included, or the model's own bound; what is longer is cut"""
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """tokens of a forward pass"""
    precision: Precision = "fp32"
    """of matrix products, weights and sums are float32; auto: bf16 where the device is
    faster with it"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """at most so many examples, for a quick look; none: all"""


def check_encoder(model: Subject, config: Pooling) -> None:
    """Raise UsageError where there is no such device, or no encoder of this architecture; DataError without
    a tokenizer.
    """
    from chronomask.model.device import choose_device

    choose_device(config.device)
    model.check_head("AutoModel")
    _ = model.tokenizer


def unit_vectors(
    encoder: PreTrainedModel, texts: Encoded, config: Pooling, shown: Progress
) -> NDArray[np.float32]:
    """The texts' mean vectors scaled to length 1, float32 [N, H]: cosines are their products.

    ``encoder``: in evaluation mode, on its device. A text without tokens has the vector 0; one
    whose states are not finite, or too large to have a length, has NaN.
    """
    import torch
    from torch.nn import functional

    from chronomask.evaluate.heads import without_unread_mask
    from chronomask.model.device import autocast

    device = next(encoder.parameters()).device
    vectors = np.zeros((len(texts), _width(encoder)), np.float32)
    filled = np.flatnonzero(texts.lengths)
    for batch in by_tokens(texts.lengths[filled], config.batch_tokens, encoder):
        index = filled[batch]
        inputs = without_unread_mask(encoder, texts.batch(index, encoder, device))
        with torch.inference_mode(), autocast(device, config.precision):
            states = encoder(**inputs).last_hidden_state.float()
        lengths = send(texts.lengths[index], device)[:, None]
        real = torch.arange(states.shape[1], device=device) < lengths
        mean = (states * real[..., None]).sum(1) / lengths
        unit = functional.normalize(mean, dim=1)
        vectors[index] = unit.where(have_length(mean)[:, None], torch.nan).cpu().numpy()
        shown.advance(index.size)
    return vectors


def have_length(vectors: torch.Tensor) -> torch.Tensor:
    """Whether each of float32 [N, H] has a finite length, bool [N]: NaN and infinity have none."""
    return vectors.norm(dim=1).isfinite()


def _width(encoder: PreTrainedModel) -> int:
    """Of the last hidden states: a Reformer's are both of its reversible streams side by side."""
    streams = 2 if encoder.config.model_type == "reformer" else 1
    return streams * encoder.config.hidden_size
