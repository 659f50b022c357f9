"""The part of a run's config that another training loop can carry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chronomask.errors import UsageError, shown
from chronomask.masking.config import MaskingConfig
from chronomask.train.config import RunConfig

__all__ = ["CARRIED", "read_arm"]

CARRIED = ("masking", "objective", "late_masks", "z_loss")
"""The keys of a run's config that another loop can carry."""
_INSTEAD = {
    "averaging": "average weights with torch.optim.swa_utils.AveragedModel, or Lightning's WeightAveraging",
    "rows_follow_ratio": "how many rows a step has is for your data loader to say",
    "batch_warmup": "how many rows a step has is for your data loader to say",
    "length_warmup": "how long rows are is for your data to say",
}


def read_arm(masking: Any) -> RunConfig:
    """The config of a run of which the keys in :data:`CARRIED` count, and no other.

    ``masking``: a masking config, or the keys of a run that say more, such as ``objective``: each as a dict,
    the path of a YAML file, the name of a recipe, or a list of these. Raises UsageError for keys of a run
    that no other loop can carry.
    """
    parts = masking if isinstance(masking, list | tuple) else [masking]
    for part in parts:
        if not isinstance(part, MaskingConfig | RunConfig | Mapping | str | Path):
            raise UsageError(
                f"masking is {shown(part)}; give a MaskingConfig, a dict such as {{'ratio': 0.15}}, the "
                "path of a YAML file, or the name of a recipe"
            )
    plain = [part for part in parts if not isinstance(part, MaskingConfig)]
    layers = [RunConfig._layer_of(part).values for part in plain]
    keys = {
        str(key).split(".")[0] for layer in layers if isinstance(layer, Mapping) for key in layer
    }
    known = [key for key in RunConfig.model_fields if key in keys]
    if not known:
        return RunConfig(data="none", masking=MaskingConfig.of(masking))
    for key in known:
        if key not in CARRIED:
            way_out = _INSTEAD.get(key, "set it where your loop has it")
            raise UsageError(
                f"{key} cannot be carried into another training loop, which takes {', '.join(CARRIED)} of a "
                f"run's config: leave it out ({way_out}), or train with chronomask pretrain"
            )
    return RunConfig.of([*parts, {"data": "none"}])
