"""A Trainer of worded rows that keeps what its model was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerFast, TrainingArguments

from chronomask.integrations.transformers import TimeVariantTrainer
from chronomask.masking.config import MaskingConfig
from chronomask.masking.rows import RowCollator
from chronomask.types import UPOS_CLASSES
from tests.support.worded_rows import ROW_LENGTH, tiny_model

LINEAR = MaskingConfig.parse({"ratio": {"kind": "linear", "start": 0.4, "end": 0.1}})
PTW = MaskingConfig.parse(
    {
        "ratio": {"kind": "linear", "start": 0.4, "end": 0.1},
        "content": {"kind": "ptw", "ema_decay": 0.5},
    }
)


@dataclass
class Seen:
    """What the model was really given, forward by forward."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    labels: list[torch.Tensor] = field(default_factory=list)

    def all_inputs(self) -> torch.Tensor:
        return torch.cat(self.inputs)

    def all_labels(self) -> torch.Tensor:
        return torch.cat(self.labels)


class Recording(TimeVariantTrainer):
    """Keeps every batch, split by training and evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trained, self.evaluated = Seen(), Seen()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen = self.trained if model.training else self.evaluated
        seen.labels.append(inputs["labels"].clone())

        def keep(_: Any, __: Any, given: dict[str, Any]) -> None:
            seen.inputs.append(given["input_ids"].clone())

        handle = model.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            handle.remove()


def trainer_of(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    out: Path,
    masking: Any = PTW,
    model: Any = None,
    kind: type[Recording] = Recording,
    given: dict[str, Any] | None = None,
    **arguments: Any,
) -> Recording:
    """``kind``: the class of the trainer; ``given``: what it gets beside, or instead of, these parts."""
    values = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 11,
    }
    parts: dict[str, Any] = {
        "masking": masking,
        "class_names": UPOS_CLASSES,
        "processing_class": tokenizer,
        "train_dataset": rows,
        "eval_dataset": [
            rows[k] for k in range(min(12, len(rows)))
        ],  # a slice of a datasets.Dataset has no rows
        "data_collator": RowCollator(tokenizer, row_length=ROW_LENGTH),
    }
    parts |= given or {}
    if "model_init" not in parts:
        parts["model"] = model or tiny_model(tokenizer)
    return kind(args=TrainingArguments(str(out), **values | arguments), **parts)


def same_state(left: Recording, right: Recording) -> bool:
    a, b = left.masking.state_dict(), right.masking.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_dropout(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    model = tiny_model(tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
