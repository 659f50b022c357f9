"""A mean of the weights over the steps of a run, kept beside the weights that are trained.

The mean never touches training. It is kept in float32, goes into every checkpoint as a model of its own
(``averaged/``), and is what validations, results and reports of such a run are of; the weights as they are
trained are measured beside it. Until something has entered it, it is those weights themselves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from chronomask.config import Alternative
from chronomask.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Average", "Averaging", "Ema", "Tail"]

_TENSOR = "averaging.number"


class Averaging(Alternative):
    """The family of means of weights, distinguished by ``kind``."""

    every: Annotated[int, Field(ge=1, le=10**15)] = 1
    """steps between the weights that enter the mean"""

    @abstractmethod
    def share(self, number: int) -> float:
        """The newest weights' share of the mean of ``number`` sets of weights; 1 of the first."""

    def first(self, steps: int) -> int:
        """The step, of ``steps``, after which weights enter."""
        return 0

    def takes(self, step: int, steps: int) -> bool:
        """Whether the weights after ``step`` of ``steps`` updates enter the mean."""
        return step % self.every == 0 and step > self.first(steps)

    def number(self, steps: int) -> int:
        """How many sets of weights enter over a run of ``steps``."""
        return steps // self.every - self.first(steps) // self.every


class Ema(Averaging):
    """An exponential moving average: weights of k steps ago count decay^k as much as the newest.

    Divided by the sum of these factors, as Adam's moments are (Kingma and Ba, arXiv 1412.6980, section 3), so
    that the initial weights have no part in it.
    """

    kind: Literal["ema"] = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """decay a step, also where only every so many steps enter"""

    def share(self, number: int) -> float:
        """(1 − β) / (1 − βⁿ) with β = decay^every."""
        beta = self.decay**self.every
        return (1 - beta) / (1 - beta**number)


class Tail(Averaging):
    """The plain mean of the weights over the last part of the steps.

    Polyak and Juditsky (1992); Izmailov et al., "Averaging weights leads to wider optima" (UAI 2018).
    """

    kind: Literal["tail"] = "tail"
    last: Annotated[float, Field(gt=0, le=1)] = 0.2
    """share of the steps, at the end, whose weights enter"""

    def share(self, number: int) -> float:
        """1 / n."""
        return 1 / number

    def first(self, steps: int) -> int:
        """The last step that is not averaged."""
        return steps - max(1, round(self.last * steps))


class Average:
    """The mean of a model's weights so far, on the model's device."""

    def __init__(self, rule: Averaging, model: nn.Module) -> None:
        self._rule = rule
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._mean: list[torch.Tensor] = []
        self.number = 0
        """how many sets of weights have entered"""

    def take(self, step: int, steps: int) -> None:
        """Let the weights after ``step`` of ``steps`` updates enter, if it is their turn."""
        import torch

        if not self._rule.takes(step, steps):
            return
        self.number += 1
        weights = [parameter.detach() for _, parameter in self._named]
        if self._mean:
            foreach: Any = torch  # whose ``_foreach`` functions type checkers do not know
            foreach._foreach_lerp_(self._mean, weights, self._rule.share(self.number))
        else:
            self._mean = [weight.clone() for weight in weights]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights while this is open; nothing may train it then."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for k, mean in enumerate(self._mean):
            parameter = self._named[k][1]
            parameter.data, self._mean[k] = mean, parameter.data

    def by_parameter(self) -> dict[int, torch.Tensor]:
        """The averaged weight of each parameter by its ``id``; empty until something has entered."""
        ids = (id(parameter) for _, parameter in self._named)
        return dict(zip(ids, self._mean, strict=False))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps beside the averaged model."""
        import torch

        return {_TENSOR: torch.tensor(self.number)}

    def load(self, state: dict[str, torch.Tensor], averaged: nn.Module | None) -> None:
        """Go on from :meth:`state_dict` and the model saved; raises DataError where one is missing."""
        if _TENSOR not in state or bool(state[_TENSOR]) != (averaged is not None):
            raise DataError("the checkpoint holds no average of weights: it was trained without")
        self.number = int(state[_TENSOR])
        if averaged is not None:
            saved = dict(averaged.named_parameters())
            self._mean = [saved[name].detach().to(own.device) for name, own in self._named]
