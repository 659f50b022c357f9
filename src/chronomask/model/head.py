"""The gathered head: logits where something is predicted, and nowhere else.

A masked language model needs logits at some 15 % of its tokens, but its ``forward`` computes them
everywhere, which for a small model is most of the work. Here the backbone runs alone, the hidden
states of the predicted positions are gathered, and the architecture's own head runs on those. How
a head is called is the only thing an architecture must tell: one line in :data:`HEADS`.

Compiled, the head sees few shapes: predicted positions are padded to one of eight :data:`PADDED_SIZES`, so
that a ratio that changes from step to step does not compile the head again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from chronomask.model.last_layer import asks_alone, ending_of

__all__ = [
    "HEADS",
    "PADDED_SIZES",
    "compile_backbone",
    "compile_budget",
    "logits_at",
    "losses_at",
    "padded_size",
    "token_losses",
]

Head = Callable[[Any, torch.Tensor], torch.Tensor]
"""(model, hidden states [N, H]) → logits [N, V]."""


def _cls(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.cls(hidden)


def _lm_head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.lm_head(hidden)


def _modernbert(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.decoder(model.head(hidden))


def _distilbert(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    hidden = model.activation(model.vocab_transform(hidden))
    return model.vocab_projector(model.vocab_layer_norm(hidden))


def _electra(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.generator_lm_head(model.generator_predictions(hidden))


def _albert(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.predictions(hidden)


HEADS: dict[str, Head] = {
    "albert": _albert,
    "bert": _cls,
    "camembert": _lm_head,
    "distilbert": _distilbert,
    "electra": _electra,
    "ernie": _cls,
    "esm": _lm_head,
    "eurobert": _lm_head,
    "megatron-bert": _cls,
    "mobilebert": _cls,
    "modernbert": _modernbert,
    "mpnet": _lm_head,
    "roberta": _lm_head,
    "roberta-prelayernorm": _lm_head,
    "xlm-roberta": _lm_head,
    "xlm-roberta-xl": _lm_head,
}
"""How to call the head of each ``model_type``; any other computes all logits and then gathers."""


PADDED_SIZES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 1.0)
"""Numbers of predicted tokens that a compiled head is given, as shares of a batch's tokens.

Eight, so that a ratio that moves through a run compiles the head a few times in all."""


def padded_size(num_targets: int, num_tokens: int) -> int:
    """The smallest of the :data:`PADDED_SIZES` of ``num_tokens`` tokens that holds ``num_targets``."""
    return next(
        room for share in PADDED_SIZES if (room := math.ceil(share * num_tokens)) >= num_targets
    )


def compile_backbone(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile the model under its head in place, as one graph, for batches of fixed shapes."""
    model.base_model.compile(backend=backend, fullgraph=True, dynamic=False)


@contextmanager
def compile_budget() -> Iterator[None]:
    """Forget what this process has compiled, and let torch compile more shapes while this is open.

    torch counts the shapes of a function over all models of a process, and gives up at its limit of 8. A run
    has at most four sizes of micro-batches (times the lengths of a warm-up), a few numbers of documents,
    and eight numbers of predictions.
    """
    torch._dynamo.reset()
    with torch._dynamo.config.patch(
        recompile_limit=_MOST_SHAPES, accumulated_recompile_limit=16 * _MOST_SHAPES
    ):
        yield


_MOST_SHAPES = 128
"""Shapes of one function that a run may compile, with head-room."""


@cache
def _compile(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


@cache
def _then(end: Callable[..., torch.Tensor] | None, head: Head, losses: bool) -> Callable[..., Any]:
    """(model, what ``end`` takes) → logits of the hidden states that it gives: one function to compile.

    No ``end``: (model, hidden states) → logits. With ``losses`` targets come last, and what
    :func:`token_losses` says of them is given instead.
    """

    def run(model: Any, *arguments: Any) -> Any:
        *given, targets = arguments if losses else (*arguments, None)
        logits = head(model, given[0] if end is None else end(model, *given))
        return logits if targets is None else _FusedTokenLosses.apply(logits, targets)

    return run


def logits_at(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    inputs: Mapping[str, Any],
    compiled: str | None = None,
    *,
    whole_layers: bool = False,
) -> torch.Tensor:
    """Logits [N, V] at flat ``positions`` int64 [N], which ascend, of ``input_ids`` int64 [B, T].

    ``inputs``: further keywords of the backbone, from
    :func:`~chronomask.model.documents.backbone_inputs`. ``compiled``: the backend of
    ``torch.compile`` that all runs with; what runs at predicted positions alone is given positions padded to
    one of the :data:`PADDED_SIZES`. ``whole_layers``: call every layer as a module and for all tokens, as
    those must be whose parameters are gathered when they are called.
    """
    head = HEADS.get(model.config.model_type)
    if head is None:
        return model(input_ids=input_ids, **inputs).logits.flatten(0, 1).index_select(0, positions)
    logits = _at(model, head, input_ids, positions, None, inputs, compiled, whole_layers)
    # Where nothing was filled up no view is made: FSDP2 cannot tell what is done to a view.
    return logits if compiled is None else logits[: positions.shape[0]]


def losses_at(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    inputs: Mapping[str, Any],
    compiled: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What :func:`token_losses` says of ``targets`` int64 [N] at :func:`logits_at`'s positions, compiled.

    The losses are part of the graph that computes logits. Logits in bfloat16 are then read and written twice,
    and no float32 tensor of [N, V] is ever made.
    """
    head = HEADS.get(model.config.model_type)
    if head is None:
        return token_losses(logits_at(model, input_ids, positions, inputs).float(), targets)
    found = _at(model, head, input_ids, positions, targets, inputs, compiled, whole_layers=False)
    loss, correct, log_z = (each[: positions.shape[0]] for each in found)
    return loss, correct, log_z


def _at(
    model: PreTrainedModel,
    head: Head,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor | None,
    inputs: Mapping[str, Any],
    compiled: str | None,
    whole_layers: bool,
) -> Any:
    """Logits at positions, or with ``targets`` the three of :func:`token_losses`.

    A compiled head is given more positions, up to one of a few sizes. Their results are the last ones, and
    callers cut them off.
    """
    ending = None if whole_layers else ending_of(model)
    number = positions.shape[0]
    num_tokens = input_ids.numel()
    wanted: tuple[torch.Tensor, ...] = () if targets is None else (targets,)
    if compiled is not None:
        more = (0, padded_size(number, num_tokens) - number)
        positions = torch.nn.functional.pad(positions, more, value=num_tokens)
        wanted = tuple(torch.nn.functional.pad(each, more) for each in wanted)
    # The added positions lie behind the last token. They are computed as the last token and then cut off.
    of_tokens = positions.clamp(max=num_tokens - 1)

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        return (function if compiled is None else _compile(function, compiled))(model, *arguments)

    def finish(end: Callable[..., torch.Tensor] | None, *arguments: Any) -> Any:
        return run(_then(end, head, targets is not None), *arguments, *wanted)

    if ending is None:
        states = (model.base_model(input_ids=input_ids, **inputs).last_hidden_state,)
        return finish(None, *_pick(states, of_tokens))
    if asks_alone(model, ending, inputs, compiled=compiled is not None):
        read = run(ending.read, input_ids, inputs)
        picked = read.states_at(of_tokens)
        return finish(ending.ask, picked, read, positions, inputs.get("documents"))
    states = run(ending.whole, input_ids, inputs)
    return finish(ending.rest, *_pick(states, of_tokens))


def _pick(states: Iterable[torch.Tensor], positions: torch.Tensor) -> Iterator[torch.Tensor]:
    """Tensors [B, T, …] at flat positions, [N, …] each."""
    return (state.flatten(0, 1).index_select(0, positions) for state in states)


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy float32 [N] in nats of ``logits`` float32 [N, V] and ``targets`` int64 [N]; whether each
    target is right, bool [N]: no other token has a higher logit; and log Z float32 [N], the logarithm of
    the sum of the exponentials of a position's logits.
    """
    if not targets.numel():
        return logits.sum(1), targets.bool(), logits.sum(1)
    return _TokenLosses.apply(logits, targets)


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy that keeps one [N, V] tensor, the softmax, and turns it into the gradient.

    Half the time of log-softmax, its backward and a separate search for the highest logit: for small
    models these passes over [N, V] cost more than a layer. Not differentiable twice.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        highest = logits.amax(1)
        own = logits.gather(1, targets[:, None])[:, 0]
        softmax = torch.softmax(logits, 1)
        # The largest probability is 1 / sum(exp(logits − highest)): its log gives the log-sum-exp.
        log_z = highest - softmax.amax(1).log()
        loss = log_z - own
        correct = own >= highest
        ctx.save_for_backward(softmax, targets)
        ctx.mark_non_differentiable(correct)
        ctx.set_materialize_grads(
            False
        )  # a gradient of log Z costs nothing where none is asked for
        return loss, correct, log_z

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        softmax, targets = ctx.saved_tensors
        of_loss, _, of_log_z = (None if g is None else g[:, None] for g in grad_outputs)
        if of_loss is None:
            assert of_log_z is not None
            return softmax.mul_(of_log_z), None
        factor = of_loss if of_log_z is None else of_loss + of_log_z
        return softmax.mul_(factor).scatter_add_(1, targets[:, None], -of_loss), None


class _FusedTokenLosses(torch.autograd.Function):
    """The same for logits [N, V] of any type inside a compiled graph: they are kept as they are, and the
    softmax is computed once more for the gradient, in the pass that writes it. Not differentiable twice.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        exact = logits.float()
        highest = exact.amax(1)
        log_z = highest + (exact - highest[:, None]).exp().sum(1).log()
        own = exact.gather(1, targets[:, None])[:, 0]
        correct = own >= highest
        ctx.save_for_backward(logits, targets, log_z)
        ctx.mark_non_differentiable(correct)
        return log_z - own, correct, log_z

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, log_z = ctx.saved_tensors
        of_loss, _, of_log_z = grad_outputs
        softmax = (logits.float() - log_z[:, None]).exp()
        # Compared with every token instead of scattered: all is one pass then.
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
        from_own = torch.where(is_target, of_loss[:, None], 0.0)
        return (softmax * (of_loss + of_log_z)[:, None] - from_own).to(logits.dtype), None
