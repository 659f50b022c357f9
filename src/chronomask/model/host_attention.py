"""Attention as the host computes it where rows are long: block by block.

A row of packed documents needs the squares along the diagonal of its attention matrix alone. torch has no
kernel on the host that leaves the rest out, nor one that drops weights. Here a block is a document, or a
row. Its scores are made, used and forgotten, and made once more in the backward pass, as FlashAttention does
it (Dao and others, arXiv 2205.14135), so that they stay in the processor's caches. The products are torch's.

States in bfloat16 are read as float32, so scores, weights and sums are float32 there too: processors multiply
small matrices hardly faster in bfloat16, once it is counted what the casts cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from chronomask.compiled import KEPT
from chronomask.model.device import product_dtype
from chronomask.model.documents import Documents
from chronomask.model.dropout import Kept, draw_key, share, softmax_and_drop

__all__ = ["Block", "attend", "split", "takes"]

_OF_A_BLOCK = 2**14
"""Scores that take as long as what a block costs beside its scores."""
_MORE = {torch.float32: (0.25, 0.25), torch.bfloat16: (3.0, 1.0)}
"""How much more a score of a block costs than one of torch's own kernel, which drops nothing: without
gradients, and with them."""
_MANY = 2**22
"""Scores of a layer, 16 MiB, up to which making them twice takes longer than fetching them from memory."""
_NOTHING = torch.zeros(1, 1, 1)


class Block(NamedTuple):
    """Tokens of a row that see each other and nothing else."""

    row: int
    start: int
    end: int

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """The part [heads, end − start, width] of states [B, heads, T, width]."""
        return states[self.row, :, self.start : self.end]

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """The same part in float32."""
        return self.of(states).float()

    def of_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The part [1 or heads, end − start, end − start] of a mask [B or 1, 1 or heads, T, T]."""
        inside = slice(self.start, self.end)
        return mask[min(self.row, len(mask) - 1), :, inside, inside]


def split(documents: Documents, query: torch.Tensor, dropout: float) -> list[Block] | None:
    """A block for each document; None where to leave out what is between them saves less than it costs.

    ``query`` [B, heads, T, width].
    """
    if not documents.separate:
        return None
    rows, length = documents.number.shape
    bounds = np.unique(documents.cu_seqlens.numpy()).astype(np.int64)
    sizes = np.diff(bounds)
    inside = int((sizes**2).sum())
    heads = query.shape[1]
    more = 0.0 if dropout else _MORE[product_dtype(query)][torch.is_grad_enabled()]
    costs = more * heads * inside + torch.get_num_threads() * _OF_A_BLOCK * sizes.size
    if heads * (rows * length**2 - inside) <= costs:
        return None
    row, start = np.divmod(bounds[:-1], length)
    return [Block(*block) for block in np.stack((row, start, start + sizes), 1).tolist()]


@dataclass(frozen=True, slots=True)
class _How:
    """What a layer's attention depends on beside queries, keys and values; see :func:`attend`."""

    mask: torch.Tensor | None
    blocks: list[Block] | None
    scale: float
    dropout: float
    seed: int


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    blocks: list[Block] | None = None,
) -> torch.Tensor:
    """Attention of [B, heads, Q, width] to [B, heads, T, width] → [B, Q, heads, width].

    ``mask`` [B or 1, 1 or heads, Q, T]: true or 0 where a token is seen; it takes no gradient. ``blocks``, of
    rows where Q = T: those whose tokens see each other, every token in one; None: all tokens of a row do.
    Which weights are dropped depends on their places in [B, heads, Q, T] and not on blocks.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if blocks is None and _are_long(query, key):
        blocks = [Block(row, 0, query.shape[2]) for row in range(len(query))]
    how = _How(mask, blocks, scale, dropout, draw_key() if dropout else 0)
    query, key, value = (x.to(product_dtype(x)) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        if blocks is not None and takes(query, key, value):
            return _InBlocks.apply(query, key, value, how)
        return _at_once(query, key, value, how)


def takes(*states: torch.Tensor) -> bool:
    """Whether these are computed in blocks: all are float32, or all bfloat16, also where autocast casts."""
    return {product_dtype(x) for x in states} in ({torch.float32}, {torch.bfloat16})


def _are_long(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether rows are so long, and all ask, that each is worth a block."""
    rows, heads, asking, _ = query.shape
    of_a_row = heads * asking**2
    worth_it = of_a_row > 4 * torch.get_num_threads() * _OF_A_BLOCK and rows * of_a_row > _MANY
    return asking == key.shape[2] and worth_it


def _at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: _How
) -> torch.Tensor:
    """:func:`attend` with all scores in memory: for few, of any type, and for gradients of gradients."""
    if query.dtype in (torch.bfloat16, torch.float16):
        return _at_once(query.float(), key.float(), value.float(), how).to(query.dtype)
    scores = torch.matmul(query * how.scale, key.transpose(2, 3))
    # Scores are as large as all else together, so where nothing is lost they are changed in place.
    if how.blocks is not None:
        hidden = torch.ones_like(scores, dtype=torch.bool)
        for block in how.blocks:
            block.of(hidden)[..., block.start : block.end] = False
        scores.masked_fill_(hidden, -torch.inf)
    if how.mask is not None:
        scores = _add_mask(scores, how.mask)
    weights = softmax_and_drop(scores, how.dropout, how.seed)
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


def _add_mask(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -torch.inf)
    return scores.add_(mask) if mask.dtype == scores.dtype else scores + mask


class _InBlocks(torch.autograd.Function):
    """:func:`attend` of float32 or bfloat16, block by block."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: _How
    ) -> torch.Tensor:
        """Keep what was given, not the weights."""
        layer = _Layer(query, key, how)
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1])
        into = out.transpose(1, 2)
        for block in how.blocks or ():
            _, dropped = layer.weights(block)
            block.of(into).copy_(torch.bmm(dropped, block.read(value)))
        ctx.how = how
        ctx.save_for_backward(query, key, value)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Make the weights of each block again, and from them the gradients."""
        query, key, value = ctx.saved_tensors
        how: _How = ctx.how
        (grad,) = grad_outputs
        if torch.is_grad_enabled():  # this gradient is to have one
            wanted = [x for x in (query, key, value) if x.requires_grad]
            again = _at_once(query, key, value, how)
            found = iter(torch.autograd.grad(again, wanted, grad, create_graph=True))
            return (*(next(found) if x.requires_grad else None for x in (query, key, value)), None)

        layer = _Layer(query, key, how)
        grad = grad.transpose(1, 2)
        of_query, of_key, of_value = map(_empty_like_states, (query, key, value))
        for block in how.blocks or ():
            weights, dropped = layer.weights(block)
            given = block.read(grad)
            block.of(of_value).copy_(torch.bmm(dropped.transpose(1, 2), given))
            of_scores = torch.bmm(given, block.read(value).transpose(1, 2))
            _through_softmax(of_scores, dropped, weights, how.scale)
            block.of(of_query).copy_(torch.bmm(of_scores, block.read(key)))
            block.of(of_key).copy_(torch.bmm(of_scores.transpose(1, 2), block.read(query)))
        return of_query, of_key, of_value, None


def _empty_like_states(states: torch.Tensor) -> torch.Tensor:
    """[B, heads, T, width] in the order in which a linear layer gives and takes it: by rows and tokens."""
    return torch.empty_like(
        states.transpose(1, 2), memory_format=torch.contiguous_format
    ).transpose(1, 2)


class _Layer:
    """The attention weights of a layer, as often as they are asked for."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, how: _How) -> None:
        self._query, self._key, self._how = query, key, how
        self._kept = Kept(how.seed, how.dropout) if how.dropout else None
        _, self._heads, self._length, _ = query.shape

    def weights(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [heads, tokens, tokens] of a block before and after dropout."""
        query, key = block.read(self._query), block.read(self._key).transpose(1, 2)
        scores = torch.baddbmm(_NOTHING, query, key, beta=0, alpha=self._how.scale)
        if self._how.mask is not None:
            scores = _add_mask(scores, block.of_mask(self._how.mask))
        weights = torch.softmax(scores, dim=-1)
        if self._kept is None:
            return weights, weights
        head = np.arange(self._heads) + block.row * self._heads
        token = np.arange(block.start, block.end)
        places = (head[:, None] * self._length + token) * self._length + block.start
        self._kept.of_rows(_rows(weights), places.astype(np.uint32).reshape(-1), _rows(scores))
        return weights, scores


def _through_softmax(
    grad: torch.Tensor, dropped: torch.Tensor, weights: torch.Tensor, scale: float
) -> None:
    """Make, in place, of the gradient of ``dropped`` weights [heads, q, t] that of their scores."""
    g, d, w = _rows(grad), _rows(dropped), _rows(weights)

    def fill(start: int, end: int) -> None:
        part = slice(start, end)
        _softmax_backward(g[part], d[part], w[part], np.float32(scale))

    share(fill, *g.shape)


def _rows(scores: torch.Tensor) -> NDArray[np.float32]:
    """Scores [heads, q, t], which lie one after the other, as [heads · q, t]."""
    return scores.view(-1, scores.shape[-1]).numpy()


@njit(cache=KEPT, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _softmax_backward(
    grad: NDArray[np.float32],
    dropped: NDArray[np.float32],
    weights: NDArray[np.float32],
    scale: np.float32,
) -> None:
    """``grad`` becomes (g − ``weights`` · Σ g) · ``scale``, g: ``grad`` · ``dropped``; all are [R, N]."""
    rows, n = grad.shape
    for r in range(rows):
        total = np.float32(0)
        for j in range(n):
            product = grad[r, j] * dropped[r, j]
            grad[r, j] = product
            total += product
        for j in range(n):
            grad[r, j] = (grad[r, j] - weights[r, j] * total) * scale
