"""A Trainer run for torchrun: writes what this process saw to ``<folder>/seen-<rank>.pt``."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments

from chronomask.integrations.transformers import TimeVariantTrainer
from chronomask.masking.rows import RowCollator
from chronomask.types import UPOS_CLASSES
from tests.support.worded_rows import ROW_LENGTH, make_rows, make_tokenizer, tiny_model

LEARNING = {"content": {"kind": "ptw", "ema_decay": 0.5}}
TWO_KINDS_OF_ROWS = {
    "masking": LEARNING | {"ratio": {"kind": "constant", "base": 0.5}},
    "objective": {"kind": "hybrid", "causal": 0.5},
    "late_masks": {"layer": 1},
    "z_loss": 0.01,
}


def main(folder: Path, batch_size: int) -> None:
    rank = os.environ.get("RANK", "0")
    seen = {
        "own": train(folder, batch_size, TWO_KINDS_OF_ROWS),
        "stream": train(folder, batch_size, LEARNING, as_stream=True),
        "shards": train_on_shards(folder),
        **train(folder, batch_size, LEARNING),
    }
    torch.save(seen, folder / f"seen-{rank}.pt")


def train(folder: Path, batch_size: int, masking: Any, as_stream: bool = False) -> dict[str, Any]:
    """What the model was given, the losses and ratios that were logged, and the state of content.

    ``as_stream``: read rows that have no places.
    """
    tokenizer = make_tokenizer()
    model = tiny_model(tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows: Any = make_rows(tokenizer, 32)
    if as_stream:
        rows = Dataset.from_list(rows).to_iterable_dataset(num_shards=1)
    trainer = TimeVariantTrainer(
        model,
        _arguments(
            folder,
            max_steps=4,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            logging_steps=1,
        ),
        masking=masking,
        class_names=UPOS_CLASSES,
        processing_class=tokenizer,
        train_dataset=rows,
        data_collator=RowCollator(tokenizer, row_length=ROW_LENGTH),
    )
    inputs: list[torch.Tensor] = []

    def keep(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        inputs.append(given["input_ids"])

    if masking is LEARNING and not as_stream:
        model.register_forward_pre_hook(keep, with_kwargs=True)
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    shown = torch.stack(inputs) if inputs else None
    names = ("masking_ratio", "masking_ratio_achieved", "causal_share")
    lines = [line for line in trainer.state.log_history if "loss" in line]
    ratios = [[line[name] for name in names if name in line] for line in lines]
    state = trainer.masking.state_dict()
    return {"inputs": shown, "loss": logged, "state": state, "ratios": ratios}


def _arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Of a training that prints and keeps nothing."""
    return TrainingArguments(
        str(folder),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )


def train_on_shards(folder: Path) -> dict[str, Any]:
    """Losses of validations, and steps done, where two streams have shards of unequal numbers of rows."""
    tokenizer = make_tokenizer()
    rows = make_rows(tokenizer, 13)
    trainer = TimeVariantTrainer(
        tiny_model(tokenizer),
        _arguments(
            folder,
            max_steps=5,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=3,
            learning_rate=0.0,
            eval_strategy="steps",
            eval_steps=4,
        ),
        masking={"ratio": 0.3},
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows).to_iterable_dataset(num_shards=2),
        eval_dataset={
            "held_out": Dataset.from_list(rows).to_iterable_dataset(num_shards=3),
            "few": Dataset.from_list(rows[:1]).to_iterable_dataset(),
            "list": rows,
        },
        data_collator=RowCollator(tokenizer, row_length=ROW_LENGTH),
    )
    trainer.train()
    losses = {
        name: value
        for line in trainer.state.log_history
        for name, value in line.items()
        if name.endswith("_loss") and name.startswith("eval")
    }
    return {"steps": trainer.state.global_step, **losses}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
    # The Trainer leaves its group to the interpreter's end, where a thread of gloo may abort the process.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
