"""How much memory training a model needs, by formula.

h is the hidden width, m the inner width of the feed-forward layers, T the row's length, A the heads, N the
predicted tokens of a micro-batch, V the vocabulary; a number has 4 bytes, or 2 where autocast makes it
bfloat16. What a layer keeps of a token for the backward pass, in numbers:

- 8h: its input, queries, keys, values, attention's output, what both norms read, and the second norm's
  output; 2h more where positions are rotated;
- 2m: feed-forward before and after the activation; 4m where it is gated;
- with dropout in hidden layers, 2h bytes for what was dropped;
- with dropout in attention on a CPU, 2·A·T, attention weights before and after it, and a byte for each.

To the layers come the embeddings (3h), as much again as one layer for gradients on their way back, and
on a CPU the mask of documents (5T bytes). A layer is that of Korthikanti et al. (arXiv 2205.05198, eq. 1)
without the attention matrix, which fused kernels do not keep. Autocast keeps what norms read and give in
float32 too (12h bytes more). The head adds N·V numbers twice (logits, softmax) and their bfloat16 copy.
``torch.compile`` keeps less. On a CPU the sum is within a factor of 1.5 (2 where activations are computed
again) of what a process was measured to take: tests/train/test_dry_run.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

__all__ = ["Memory", "estimate_memory"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device that add up to the peak of a step."""

    parameters: int
    gradients: int
    optimiser: int
    casts: int
    """bfloat16 copies of weights, and their gradients"""
    activations: int
    """of one micro-batch, kept for its backward pass"""
    logits: int
    """of one micro-batch"""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def estimate_memory(
    model: PreTrainedModel,
    *,
    state_numbers: int,
    rows: int,
    row_length: int,
    predicted: int,
    bf16: bool,
    bf16_weights: bool,
    on_cuda: bool,
    checkpointing: bool,
) -> Memory:
    """Memory of training ``model`` (which may lie on ``meta``) on micro-batches of ``rows`` rows.

    ``state_numbers``: float32 numbers that the optimiser keeps; ``predicted``: the most tokens that a
    micro-batch predicts; ``bf16_weights``: all weights have a bfloat16 copy with gradients of its own.
    """
    parameters = sum(p.numel() for p in model.parameters())
    linear = sum({id(w): w.numel() for w in _linear_weights(model)}.values())
    layer = _layer_bytes(model, row_length, bf16, bf16 and not bf16_weights, on_cuda)
    tokens, layers, hidden = rows * row_length, _size(model, _LAYERS), _size(model, _HIDDEN)
    kept = layers * layer
    if checkpointing:  # inputs of layers, and one layer as it is computed again
        kept = layers * hidden * 4 + layer
    apart = 3 * hidden * 4 + _BYTES_OF_INPUTS + (0 if on_cuda else 5 * row_length)
    return Memory(
        parameters=4 * parameters,
        gradients=4 * parameters,
        optimiser=4 * state_numbers,
        casts=4 * parameters if bf16 and bf16_weights else 2 * linear if bf16 else 0,
        activations=tokens * (kept + layer + apart),
        logits=predicted * model.config.get_text_config().vocab_size * (10 if bf16 else 8),
    )


_BYTES_OF_INPUTS = 64
"""Of a token: ids, labels, words, classes, positions and places among documents, on host and device."""
_LAYERS = ("num_hidden_layers", "encoder_layers", "num_self_attends_per_block")
_HIDDEN = ("hidden_size", "d_model", "d_latents")
_INNER = ("intermediate_size", "hidden_dim", "encoder_ffn_dim", "d_inner", "feed_forward_size")
"""What architectures call the same size."""


def _layer_bytes(
    model: PreTrainedModel, row_length: int, bf16: bool, cast: bool, on_cuda: bool
) -> int:
    """What one layer keeps of a token; ``cast``: the residual stream is float32 and cast for products."""
    config: Any = model.config.get_text_config()
    hidden, layers = _size(model, _HIDDEN), _size(model, _LAYERS)
    inner = _size(model, _INNER, 4 * hidden)
    wide = [w for w in _linear_weights(model) if inner in w.shape or 2 * inner in w.shape]
    matrices = round(sum(w.numel() for w in wide) / (hidden * inner * layers))
    rotated = getattr(config, "rope_parameters", None) is not None
    numbers = (8 + 2 * rotated) * hidden + 2 * max(1, matrices - 1) * inner
    total = numbers * (2 if bf16 else 4) + (12 * hidden if cast else 0)
    if _share(config, "hidden_dropout_prob", "dropout", "mlp_dropout"):
        total += 2 * hidden
    heads = getattr(config, "num_attention_heads", None) or 0
    if not on_cuda and _share(config, "attention_probs_dropout_prob", "attention_dropout"):
        total += 9 * heads * row_length
    return total


def _linear_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    layers = (m for m in model.modules() if isinstance(m, nn.Linear))
    return [m.weight for m in layers]  # pyright: ignore[reportReturnType]


def _size(model: PreTrainedModel, names: Sequence[str], otherwise: int = 1) -> int:
    """A size of the architecture by the first of the names that its config has."""
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in names)
    return next((size for size in found if isinstance(size, int)), otherwise)


def _share(config: Any, *names: str) -> float:
    return max(getattr(config, name, None) or 0.0 for name in names)
