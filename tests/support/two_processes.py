"""A Trainer run for torchrun: writes what this process saw to ``<folder>/seen-<rank>.pt``."""

import os
import sys
from pathlib import Path

import torch
from transformers import TrainingArguments

from chronomask.integrations.transformers import TimeVariantTrainer
from chronomask.masking.config import MaskingConfig
from chronomask.masking.rows import RowCollator
from chronomask.types import UPOS_CLASSES
from tests.support.worded_rows import ROW_LENGTH, make_rows, make_tokenizer, tiny_model


def main(folder: Path, batch_size: int) -> None:
    tokenizer = make_tokenizer()
    model = tiny_model(tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = TimeVariantTrainer(
        model,
        TrainingArguments(
            str(folder),
            max_steps=4,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        masking=MaskingConfig.parse({"content": {"kind": "ptw", "ema_decay": 0.5}}),
        class_names=UPOS_CLASSES,
        processing_class=tokenizer,
        train_dataset=make_rows(tokenizer, 32),
        data_collator=RowCollator(tokenizer, row_length=ROW_LENGTH),
    )
    inputs: list[torch.Tensor] = []

    def keep(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        inputs.append(given["input_ids"])

    model.register_forward_pre_hook(keep, with_kwargs=True)
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    rank = os.environ.get("RANK", "0")
    seen = {"inputs": torch.stack(inputs), "loss": logged, "state": trainer.masking.state_dict()}
    torch.save(seen, folder / f"seen-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
    # The Trainer leaves its group to the interpreter's end, where a thread of gloo may abort the process.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
