"""What every content schedule can do, and the state that training teaches it.

A schedule is one config class, which begins a :class:`ContentState`: a few numbers per class, updated
once per optimiser step from a :class:`~chronomask.types.ClassTally` pooled over micro-batches and ranks,
and saved in the checkpoint. Weights used in step s come from steps before s: a delay of exactly one step.

A class is a value of the data's class column (a part of speech, a frequency band, anything a user
brings), or a token id, where a schedule says so. Arrays: B rows, T tokens, C classes.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from chronomask.config import Alternative, kind_of
from chronomask.config_layers import read_yaml
from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.masking.ratio import NumberOrCourse, PureSchedule, refuse_laws, value_at
from chronomask.storage import read_object
from chronomask.text_files import read_lines
from chronomask.types import NO_CLASS, Array, ClassTally, Rows

if TYPE_CHECKING:
    import torch

__all__ = [
    "LOG_LEVELS",
    "RUNNING_LOSS",
    "ContentSchedule",
    "ContentState",
    "Decay",
    "LookAhead",
    "on_grid",
    "quantise",
    "read_by_class",
    "running_means",
    "take_in",
]

Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of a running average that one optimiser step leaves."""
Strength = Annotated[float, Field(ge=0, le=8)]

_GRID_BITS = 16
LOG_LEVELS = 11.75 * math.log(2)
"""Logarithm of the largest over the smallest weight of units whose weights are means over tokens."""


@dataclass(frozen=True, slots=True)
class LookAhead:
    """How the model in training scores rows before their steps (:mod:`chronomask.train.foresight`)."""

    every: int
    """steps whose rows are scored together"""
    passes: int
    """forward passes over them, each with another part of the words hidden"""
    measure: Literal["entropy", "loss"]
    """a position's score, in nats"""
    centred: bool
    """whether the mean of the scores made together is taken off"""


class ContentSchedule(Alternative):
    """What every content schedule says of itself; ``begin`` is the one thing a new one must define."""

    learns: ClassVar[bool] = True
    """whether its state takes in losses; if not, nothing need be observed"""
    needs_classes: ClassVar[bool] = True
    """whether it is about the classes of the data, so that data without any cannot be masked by it"""
    needs_scores: ClassVar[bool] = False
    """whether it weighs positions by the scores of the data, so that data without any will not do"""
    by_token_id: ClassVar[bool] = False
    """whether its classes are the vocabulary's token ids"""
    selection: ClassVar[Literal["exact", "published"]] = "exact"
    """how units are chosen: in expectation exactly by their weights, or by the published walk"""

    strength: Annotated[Strength | PureSchedule, NumberOrCourse] = 1.0
    """the power to which weights are raised: 1 as the schedule gives them, 0 none at all; a number, or a
    schedule of progress"""

    @model_validator(mode="after")
    def _check_strength(self) -> ContentSchedule:
        refuse_laws(self, "strength")
        strongest = max(self.strength_at(step / 100) for step in range(101))
        if (least := strongest * self.log_range) > _GRID_BITS * math.log(2) * (1 + 1e-9):
            raise ValueError(
                f"strength {strongest:g} would make the smallest weight {math.exp(-least):.2g} of the "
                f"largest, below 2^-{_GRID_BITS}: its class would be masked hardly ever again, and "
                "nothing learnt of it; the strength can be at most "
                f"{_GRID_BITS * math.log(2) / self.log_range:.3g} here"
            )
        return self

    def strength_at(self, progress: float) -> float:
        """The power to which weights are raised at ``progress`` in [0, 1]."""
        return value_at(self.strength, progress)

    @property
    def look_ahead(self) -> LookAhead | None:
        """How the model scores rows before their steps; None where it does not."""
        return None

    def paid_step_by_step(self) -> ContentSchedule:
        """The same, doing at each step what is otherwise done for several together: for trials of speed."""
        return self

    @property
    def log_range(self) -> float:
        """How far weights may lie apart: the logarithm of the largest over the smallest, at strength 1;
        0 where it is not known before training.
        """
        return 0.0

    @abstractmethod
    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        """The state before training.

        ``class_names``: of the data's class column, "none" first; ``vocab_size``: number of token ids.
        Raises UsageError when the schedule cannot work with these classes.
        """


_Schedule = TypeVar("_Schedule", bound=ContentSchedule)


class ContentState(Generic[_Schedule]):
    """The running state of a schedule: named tensors, one float64 number per class in each.

    ``tensor_names``: those that a subclass keeps in :attr:`tensors`, zero at first; they are moved, saved
    and restored here. A subclass defines :meth:`learn` and :meth:`weights`.
    """

    tensor_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: _Schedule, class_names: Sequence[str], vocab_size: int) -> None:
        import torch

        if config.needs_classes and len(class_names) < 2:
            raise UsageError(
                f"content schedule '{kind_of(config)}' needs token classes, but none are named: "
                "prepare the text with a tagger (rows of your own: cm.add_classes, and the names of the "
                "classes as class_names), or use content 'none' or 'token_accuracy'"
            )
        self.config = config
        self.class_names = tuple(class_names)
        self.num_classes = vocab_size if config.by_token_id else len(self.class_names)
        self.num_updates = 0
        self.device = torch.device("cpu")
        self.tensors = {
            name: torch.zeros(self.num_classes, dtype=torch.float64) for name in self.tensor_names
        }

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        """Take in one step's sums: float64 [C] on the state's device, losses in nats.

        :attr:`num_updates` counts this step already.
        """

    def weights(self) -> torch.Tensor | None:
        """float64 [C] in [0, 1], larger = masked more; None when every class is alike."""
        return None

    def weigh_positions(self, rows: Rows) -> Array | None:
        """float64 [B, T], :func:`on_grid`, larger = masked more: weights of tokens that no class tells, where
        the rows are; None where :meth:`weights` are all. Raises UsageError for rows without what it takes.
        """
        return None

    def update(self, tally: ClassTally) -> None:
        """Take in one optimiser step's pooled sums; ``tally`` has this state's ``num_classes``."""
        import torch

        self.num_updates += 1
        if self.config.learns:
            sums = (tally.loss_sum, tally.count, tally.correct)
            self.learn(*(torch.as_tensor(each, device=self.device).double() for each in sums))

    def to(self, device: torch.device | str) -> None:
        """Move the state."""
        import torch

        self.device = torch.device(device)
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors of the state, and the number of updates."""
        import torch

        updates = torch.tensor(self.num_updates, dtype=torch.int64)
        return {"num_updates": updates} | {k: v.clone() for k, v in self.tensors.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` gave; raises DataError if it is of another schedule."""
        expected = {"num_updates"} | set(self.tensors)
        if set(state) != expected:
            raise DataError(
                f"the saved content state holds {sorted(state)}, schedule '{kind_of(self.config)}' "
                f"needs {sorted(expected)}: resume with the schedule it was trained with"
            )
        for name, tensor in self.tensors.items():
            if state[name].shape != tensor.shape:
                raise DataError(
                    f"the saved content state '{name}' has shape {tuple(state[name].shape)}, "
                    f"the data's classes need {tuple(tensor.shape)}: resume with the data it was trained on"
                )
            tensor.copy_(state[name])
        self.num_updates = int(state["num_updates"])


RUNNING_LOSS = ("loss_average", "count_average")
"""Names of the two tensors of a running loss that is right from the first step on."""


def take_in(
    tensors: Mapping[str, torch.Tensor],
    loss: torch.Tensor,
    count: torch.Tensor,
    decay: float,
    names: tuple[str, str] = RUNNING_LOSS,
) -> None:
    """Let the averages of loss sums and of token counts, float64 [C] each, take in one step's.

    Both start at 0 and are biased alike, so their quotient is not; every token counts once, whatever the
    step that it was predicted in.
    """
    for name, sums in zip(names, (loss, count), strict=True):
        tensors[name].mul_(decay).add_(sums * (1 - decay))


def running_means(
    tensors: Mapping[str, torch.Tensor], names: tuple[str, str] = RUNNING_LOSS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The running loss of each class in nats, float64 [C], and bool [C]: which were seen."""
    import torch

    loss, count = (tensors[name] for name in names)
    seen = count > 0
    seen[NO_CLASS] = False
    return loss / torch.where(seen, count, 1.0), seen


def quantise(weights: torch.Tensor) -> torch.Tensor:
    """Weights relative to the largest, :func:`on_grid`."""
    return on_grid(weights / weights.max())


def on_grid(weights: torch.Tensor) -> torch.Tensor:
    """Weights in [0, 1] on a grid of 2⁻¹⁶, and never below it.

    The grid makes selection independent of the last bits, in which devices may differ, and of the order in
    which weights are summed; the lower bound lets a class of weight 0 fill a budget that nothing else can.
    """
    return (weights * 2.0**_GRID_BITS).round().clamp(min=1.0) * 2.0**-_GRID_BITS


def read_by_class(path: str | Path, log: str, key: str) -> dict[str, Any]:
    """A number for each class, from a YAML or JSON file of names and numbers, or from a finished run.

    Of a run's folder it is what ``key`` has in the last line of ``log``, such as ``metrics.jsonl``
    (docs/contracts.md has its keys); weights of classes to the power that was in force. Raises ValueError
    for what is neither, as validators do.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return read_yaml(path)
        if not (read_object(path / "summary.json") or {}).get("complete"):
            raise UsageError(
                f"{path} is not the folder of a finished run: it has no complete summary.json"
            )
        *_, last = read_lines(path / log)
        values = json.loads(last)
        numbers = values[key]
        power = values["content_strength"] if key == "class_weight" else 1.0
        return {name: number**power for name, number in numbers.items()}
    except ChronomaskError as error:
        raise ValueError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path / log} ends in no line with {key}: the run has none, or the file is damaged"
        ) from None
