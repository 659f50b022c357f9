"""The configuration of a run: the tree of all parts' configs.

Nothing here imports torch: what acts on a value imports this file.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from chronomask.config import Config, Seed, is_reading_stored, kind_of
from chronomask.config_layers import Layer, merge, nested, read_yaml
from chronomask.data.mixture import DataChoice
from chronomask.data.order import BatchWarmUp, LengthWarmUp, Sizes
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.objective import LateMasks, MaskedOnly, Objective
from chronomask.model.config import AttentionScope, FromConfig, ModelConfig
from chronomask.runs.layout import RunFolder, branch_folder
from chronomask.train.averaging import Averaging
from chronomask.train.learning_rate import LearningRate, Linear
from chronomask.train.loggers import Logger
from chronomask.train.optimiser import AdamW, Optimiser
from chronomask.train.outliers import KeepAll, Outliers
from chronomask.types import Device, Precision

logger = logging.getLogger(__name__)

_LAPTOP = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
"""Sizes of the model where none is given: those of the recipe ``bert-small``."""
_MOST_STAGES = 1024
"""Sizes of steps at most, over a run whose rows follow the ratio."""

__all__ = [
    "CheckpointConfig",
    "RunConfig",
    "ValidationConfig",
]

Count = Annotated[int, Field(ge=0, le=10**15)]
Positive = Annotated[int, Field(ge=1, le=10**15)]
Threads = Annotated[int, Field(ge=1, le=1024)]


class ValidationConfig(Config):
    """Loss at a fixed 15 %, uniform over tokens, and the yardsticks: the same masks for every run on the same
    data.
    """

    every: Count = 500
    """steps between validations; 0 validates at the end alone"""
    at_start: bool = False
    """whether the model is validated before the first step too"""
    rows: Positive = 1024
    """held-out rows used; all of them if there are fewer"""
    order: Literal["shuffled", "data"] | None = None
    """which rows these are: a fixed sample of all documents, or the first in the data, as in version 0.2;
    none: as the run or the study began, ``shuffled`` where it begins now"""
    batch_rows: Positive | None = None
    """rows of a forward pass; none: 64, or fewer of long rows, so that they have at most 32,768 tokens"""

    @property
    def shuffled(self) -> bool:
        """Whether the rows are a sample of all documents."""
        return self.order != "data"


class CheckpointConfig(Config):
    """When state is saved, and how much of it stays."""

    every: Count = 1000
    """steps between checkpoints; 0 saves at the end alone"""
    at_start: bool = False
    """whether the state before the first step is saved too, as ``step-00000000``"""
    keep: Annotated[
        Positive | None,
        BeforeValidator(
            lambda keep: None if keep == "all" else keep,
            json_schema_input_type=Positive | Literal["all"] | None,
        ),
    ] = 2
    """number of the newest checkpoints that stay; all, or null: every one, to evaluate the run over time"""
    asynchronous: bool = True
    """whether they are written while training continues; costs a copy of the state in host memory"""


class RunConfig(Config):
    """Everything that decides what a pre-training run does."""

    name: str | None = None
    """what reports call the run; the output folder's name if not given"""
    data: DataChoice
    """folder of prepared data; or a list of folders or ``{path, weight}``, their rows mixed by weights"""
    model: ModelConfig = FromConfig(overrides=_LAPTOP)
    """what is trained; by default a BERT of 4 layers × 256, which a laptop trains"""
    masking: MaskingConfig = MaskingConfig()
    """how much is masked, what, and how"""
    objective: Objective = MaskedOnly()
    """whether some rows predict each next token instead of masked ones"""
    late_masks: LateMasks | None = None
    """whether masked tokens skip the first layers, which costs less; none: they run through all"""
    optimiser: Optimiser = AdamW()
    """how gradients become updates"""
    learning_rate: LearningRate = Linear()
    """the rate of each update"""
    averaging: Averaging | None = None
    """a mean of the weights over the steps, which becomes the model of the run; null: no mean"""
    branch: str | None = None
    """a run's folder, or one of its checkpoints, to continue from: weights, optimiser state,
    content state and the order of rows; schedules and steps begin at 0"""
    steps: Positive = 10_000
    """optimiser steps of the whole run"""
    hours: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """wall-clock time of the whole run in hours: the speed that is measured before the first step decides
    ``steps``, whose value is ignored"""
    rows_per_step: Positive = 128
    """rows of one optimiser step, over all micro-batches and processes"""
    micro_batches: Positive = 1
    """parts that a process's rows of a step are cut into, to save memory"""
    batch_warmup: BatchWarmUp | None = None
    """steps of fewer rows at first; none: all steps have ``rows_per_step``"""
    rows_follow_ratio: bool = False
    """whether a step has rows in inverse proportion to its ratio, so that every step has as many labels;
    ``rows_per_step`` is then the rows of the steps with the lowest ratio"""
    length_warmup: LengthWarmUp | None = None
    """rows cut into shorter rows at first; none: rows are whole"""
    masked_token_budget: Positive | None = None
    """predicted tokens at which progress is 1; for ``masking.progress: masked_tokens`` alone"""
    seed: Seed = 0
    """keys initial weights, row order, masks and dropout"""
    attention: AttentionScope = "documents"
    """what a token attends to: its own document, or its whole row"""
    z_loss: Annotated[float, Field(ge=0, le=1)] = 0.0
    """factor of the mean of log² Z of predicted tokens, which is added to the loss that is minimised, so that
    logits do not drift; PaLM has 1e-4"""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """largest gradient norm; null: no clipping"""
    device: Device = "auto"
    """where training runs; auto takes a CUDA device if there is one"""
    precision: Precision = "fp32"
    """of the forward and backward pass; auto: bf16 on CUDA devices that compute it and on processors that
    are faster with it (Intel's with AMX, AMD's since Zen 4), else fp32"""
    bf16_weights: bool = False
    """whether a bfloat16 copy of the weights computes the forward and backward pass where the precision is
    bf16, norms and residual stream included; the optimiser and checkpoints keep float32 weights"""
    compile: Literal["auto", "always", "never", "graphs"] = "auto"
    """``torch.compile`` of the model; auto compiles on CUDA. graphs: there, the kernels of each pass are also
    recorded as CUDA graphs and started together, for models so small that starting kernels takes longer than
    running them"""
    activation_checkpointing: bool = False
    """compute activations again in the backward pass: a third more work, a fraction of the memory"""
    peak_flops: Annotated[float, Field(gt=0)] | None = None
    """FLOP/s of a device, of which ``mfu`` is a share; null: those of a dense product, measured"""
    threads: Threads | None = None
    """CPU threads of tensor operations; none: torch's own choice, at most what a container has"""
    sharding: Literal["none", "fsdp2"] = "none"
    """with several processes: whole copies of the state in each, or a share of it (FSDP2)"""
    deterministic: bool = False
    """refuse kernels whose result may differ from run to run; slower on CUDA, no change on CPU"""
    outliers: Outliers = KeepAll()
    """whether steps with an outlying loss or gradient are skipped"""
    loader_workers: Annotated[int, Field(ge=0, le=1024)] = 1
    """threads that read rows ahead"""
    log_every: Positive = 10
    """steps between lines of metrics.jsonl"""
    loggers: tuple[Logger, ...] = ()
    """where metrics and validations go beside the JSON Lines"""
    validation: ValidationConfig = ValidationConfig()
    """how generalisation is measured"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """how state is saved"""

    @model_validator(mode="after")
    def _check_combination(self) -> RunConfig:
        """Refuse fields that do not go together; raises ValueError."""
        counted = self.masking.progress == "masked_tokens"
        if counted and self.masked_token_budget is None:
            raise ValueError(
                "masking.progress 'masked_tokens' needs masked_token_budget: the number of predicted "
                "tokens at which progress is 1"
            )
        if not counted and self.masked_token_budget is not None:
            raise ValueError(
                f"masked_token_budget has no effect with masking.progress '{self.masking.progress}'"
            )
        if counted and not is_reading_stored():
            self._check_moving()
        if self.sharding == "fsdp2" and not self.optimiser.takes_shards:
            raise ValueError(
                f"sharding 'fsdp2' splits every parameter, and optimiser '{kind_of(self.optimiser)}' "
                "needs whole parameters: use 'adamw', or sharding 'none'"
            )
        if self.hours is not None and counted:
            raise ValueError(
                "hours decides how many steps there are, and with masking.progress 'masked_tokens' progress "
                "does not follow steps: leave hours out, or set masking.progress 'steps'"
            )
        if self.averaging is not None:
            self._check_averaging(self.averaging)
        if self.bf16_weights and self.precision == "fp32":
            raise ValueError("bf16_weights needs precision 'bf16' or 'auto'; it is 'fp32'")
        if self.bf16_weights and self.sharding != "none":
            raise ValueError(
                f"bf16_weights needs whole parameters in every process, and sharding '{self.sharding}' "
                "splits them: use sharding 'none'"
            )
        if self.compile == "graphs" and self.sharding != "none":
            raise ValueError(
                f"compile 'graphs' records passes of a whole model, and sharding '{self.sharding}' gathers "
                "it layer by layer: use compile 'auto', or sharding 'none'"
            )
        if self.micro_batches > self.rows_per_step:
            raise ValueError(
                f"micro_batches ({self.micro_batches}) must not exceed rows_per_step ({self.rows_per_step})"
            )
        if self.batch_warmup is not None and self.batch_warmup.start_rows > self.rows_per_step:
            raise ValueError(
                f"batch_warmup.start_rows ({self.batch_warmup.start_rows}) must not exceed rows_per_step "
                f"({self.rows_per_step})"
            )
        if self.rows_follow_ratio:
            self._check_following()
        self._check_objective()
        if self.late_masks is not None and self.sharding == "fsdp2":
            raise ValueError(
                "late_masks runs layers one by one, and sharding 'fsdp2' shares out whole models: use "
                "sharding 'none', or leave late_masks out"
            )
        return self

    def _check_moving(self) -> None:
        """Raise ValueError where progress in masked tokens would come to a moment that masks nothing."""
        ratio = self.masking.ratio
        still = next((k / 1000 for k in range(1000) if ratio.at(k / 1000) == 0), None)
        if still is not None:
            raise ValueError(
                f"masking.progress 'masked_tokens' stands still where nothing is masked, and masking.ratio "
                f"'{kind_of(ratio)}' is 0 at progress {still:g}: set masking.progress=steps, or a ratio "
                "above 0 there"
            )

    def _check_averaging(self, averaging: Averaging) -> None:
        """Raise ValueError where nothing would be averaged, or weights lie in parts."""
        if self.sharding != "none":
            raise ValueError(
                f"averaging '{kind_of(averaging)}' needs whole weights in each process, and sharding "
                f"'{self.sharding}' splits them: set sharding 'none', or averaging null"
            )
        if self.hours is None and not averaging.number(self.steps):
            raise ValueError(
                f"averaging.every ({averaging.every}) leaves no step of the {self.steps:,} to average: "
                "lower it"
            )

    def _check_objective(self) -> None:
        """Raise ValueError where causal rows do not go with the rest."""
        shares, kind = self.objective.shares, kind_of(self.objective)
        if shares == {0.0}:
            return
        if self.masking.progress == "masked_tokens" and 1.0 in shares:
            raise ValueError(
                f"masking.progress 'masked_tokens' stands still while objective '{kind}' masks nothing: set "
                "masking.progress: steps"
            )
        if self.rows_follow_ratio:
            raise ValueError(
                f"rows_follow_ratio holds the number of masked tokens a step, and objective '{kind}' takes "
                "some away: leave one out"
            )
        if self.sharding == "fsdp2" and not shares <= {0.0, 1.0}:
            raise ValueError(
                "sharding 'fsdp2' needs as many micro-batches in every process, and objective "
                f"'{kind}' cuts each process's rows in two kinds: use sharding 'none', or objective "
                "'causal_first'"
            )

    def _check_following(self) -> None:
        """Raise ValueError where the ratio of every step is not known from the step alone, or may be 0."""
        if self.batch_warmup is not None:
            raise ValueError(
                "rows_follow_ratio and batch_warmup both say how many rows a step has: leave one out"
            )
        if self.masking.progress != "steps":
            raise ValueError(
                f"rows_follow_ratio needs masking.progress 'steps'; it is '{self.masking.progress}', which "
                "itself depends on the rows"
            )
        if not self.masking.ratio.known_before:
            raise ValueError(
                "rows_follow_ratio needs a ratio that is known beforehand; this one responds to the loss"
            )
        if min(self.masking.ratio.at(k / 1000) for k in range(1000)) < 0.01:
            raise ValueError(
                "rows_follow_ratio needs a ratio of at least 0.01 throughout: a step of less would need more "
                "rows than any other by far"
            )

    @property
    def sizes(self) -> Sizes:
        """How many rows each step has."""
        return self.step_sizes

    @cached_property
    def step_sizes(self) -> Sizes:
        """The same, worked out once: rows that follow the ratio are looked up at every step."""
        if not self.rows_follow_ratio:
            return Sizes(self.rows_per_step, self.batch_warmup)
        ratios = self._ratios()
        rows = (max(1, round(self.rows_per_step * min(ratios) / ratio)) for ratio in ratios)
        return Sizes(self.rows_per_step, course=tuple(rows), steps=self.steps)

    def _ratios(self) -> list[float]:
        """The ratio asked at the first step of every stage of rows that follow it."""
        stages = min(self.steps, _MOST_STAGES)
        first = (-(-stage * self.steps // stages) for stage in range(stages))
        return [self.masking.ratio.at(step / self.steps) for step in first]

    def row_lengths(self, row_length: int) -> tuple[int, ...]:
        """The shortest and the longest rows that are trained on, where those of the data have this length."""
        first = () if self.length_warmup is None else (self.length_warmup.start_length,)
        return (*first, row_length)

    @property
    def data_paths(self) -> tuple[str, ...]:
        """The folders of prepared data, one or those of a mixture."""
        return (
            (self.data,) if isinstance(self.data, str) else tuple(part.path for part in self.data)
        )

    @classmethod
    def of(cls, value: Any, **changes: Any) -> Self:
        """As :meth:`Config.of`; with ``branch`` among the changes ``value`` is laid over the config of the
        run that is branched from, unless it is a whole config.
        """
        branch = changes.get("branch")
        if branch is not None and not isinstance(value, cls):
            run = branch_folder(branch)
            if not run.path.is_dir():
                raise UsageError(
                    f"branch {branch}: there is no run; give a run's folder or a checkpoint's"
                )
            run.check_config()
            parts = value if isinstance(value, list | tuple) else [value]
            value = [run.config, {"name": None}, *parts] if run.is_run() else value
            changes["branch"] = str(branch)
        return super().of(value, **changes)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Self:
        """As in :class:`~chronomask.config.Config`; a run's own file may be of an earlier version."""
        own = [replace(layer, values=_values_of_run(layer)) for layer in layers]
        config = super().from_layers(own)
        for name in ("learning_rate", "optimiser"):
            _tell_replaced(name, own, config.to_dict()[name])
        return config

    @classmethod
    def parse_stored(cls, values: Mapping[str, Any], where: str) -> Self:
        """As in :class:`~chronomask.config.Config`; the run may be of an earlier version."""
        return super().parse_stored(_of_earlier_run(values), where)

    @classmethod
    def of_run(cls, run: RunFolder) -> Self:
        """The config that a run was begun with, from its ``config.yaml``. Raises UsageError."""
        return cls.parse_stored(_without_name(read_yaml(run.config), run), str(run.config))

    def at(self, folder: RunFolder) -> RunConfig:
        """The config of the run in ``folder``: named, its data where :meth:`RunFolder.find` finds them."""

        def find(path: str) -> str:
            found = folder.find(path)
            origin = None if self.branch is None else branch_folder(self.branch)
            return found if origin is None or Path(found).exists() else origin.find(found)

        if isinstance(self.data, str):
            data: DataChoice = find(self.data)
        else:
            found = [find(path) for path in self.data_paths]
            pairs = zip(self.data, found, strict=True)
            data = tuple(part.model_copy(update={"path": path}) for part, path in pairs)
        name = self.name or folder.path.resolve().name
        return self.model_copy(update={"name": name, "data": data})


def _of_earlier_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config that a run wrote out, with the values that keys had before they existed.

    Until 0.2.0 the weights of ``ptw`` had their published strength, and validation took the first held-out
    rows; no key said so.
    """
    before = dict(values)
    match values:
        case {"masking": {"content": {"kind": "ptw", **content}}} if "strength" not in content:
            before = merge(before, {"masking": {"content": {"strength": 1.0}}})
    match values:
        case {"validation": {**validation}} if "order" not in validation:
            before = merge(before, {"validation": {"order": "data"}})
    return before


def _tell_replaced(name: str, layers: Sequence[Layer], now: Mapping[str, Any]) -> None:
    """Say what of a group a new ``kind``, given alone, puts back to defaults, and how to keep it."""
    changed = f"{name}.kind"
    number = next((n for n, layer in enumerate(layers) if changed in layer.values), None)
    if number is None:
        return
    before: dict[str, Any] = {}
    for layer in layers[:number]:
        before = merge(before, nested(layer.values))
    given = {key for layer in layers[number:] for key in layer.values}
    group = before.get(name)
    lost = {
        f"{name}.{key}": value
        for key, value in (group.items() if isinstance(group, Mapping) else ())
        if key != "kind" and key in now and now[key] != value and f"{name}.{key}" not in given
    }
    if lost and name not in given:
        changes = (f"{key} is {now[key.split('.')[1]]} instead of {lost[key]}" for key in lost)
        keep = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in lost.items())
        logger.warning(
            "%s brings defaults of its own: %s; keep what was by adding  %s",
            layers[number].origin, ", ".join(changes), keep,
        )  # fmt: skip


def _run_of(layer: Layer) -> RunFolder | None:
    """The run whose own ``config.yaml`` a layer was read from; None for any other layer."""
    if layer.file is None:
        return None
    run = RunFolder(layer.file.parent)
    begun = run.environment.is_file() or run.checkpoints.is_dir()
    return run if begun and layer.file == run.config else None


def _values_of_run(layer: Layer) -> Mapping[str, Any]:
    """The values of a layer; those of a run's own file as :meth:`RunConfig.of_run` takes them."""
    run = _run_of(layer)
    return layer.values if run is None else _of_earlier_run(_without_name(layer.values, run))


def _without_name(values: Mapping[str, Any], run: RunFolder) -> dict[str, Any]:
    """A run's values without a name that is its folder's, for a run in another folder is called otherwise."""
    name = run.path.resolve().name
    return {key: value for key, value in values.items() if (key, value) != ("name", name)}
