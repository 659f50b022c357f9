"""300 steps give the losses that transformers' own ``Trainer`` gets on the same masked batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.model.build import build_model
from chronomask.model.open import open_tokenizer
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.train.optimiser import AdamW
from tests.support.tiny_training import WITHOUT_DROPOUT, lines

STEPS = 300


class Recording(Trainer):
    """transformers' loop as it is: all logits, its cross-entropy, its clipping; notes every loss."""

    def __init__(self, batches: list[dict[str, torch.Tensor]], **how: Any) -> None:
        super().__init__(**how)
        self.batches = batches
        self.losses: list[float] = []

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # pyright: ignore[reportArgumentType]

    def compute_loss(self, *arguments: Any, **how: Any) -> Any:
        loss = super().compute_loss(*arguments, **how)
        self.losses.append(float(loss.detach()))
        return loss


@pytest.mark.slow
def test_the_loss_curve_of_300_steps_is_that_of_the_trainer(
    config: RunConfig, tiny_data: PreparedData, tmp_path: Path
) -> None:
    """Masks that depend on no loss (a decaying ratio), so that both loops can be given the same."""
    config = config.replace(
        [
            *WITHOUT_DROPOUT, f"steps={STEPS}", "masking.content.kind=none", "attention=row",
            "log_every=1", "checkpoint.every=0", "validation.every=0", "gradient_clip=0.5",
            "learning_rate.warmup_steps=20", "micro_batches=1",
        ]
    )  # fmt: skip
    pretrain(config, tmp_path / "ours", progress=False)
    ours = np.array([line["loss"] for line in lines(tmp_path / "ours" / "metrics.jsonl")])

    tokenizer = open_tokenizer(tiny_data.tokenizer_path)
    masker = Masker(
        config.masking, Vocabulary.from_tokenizer(tokenizer), tiny_data.class_names, config.seed
    )
    loader = RowLoader(
        tiny_data.split("train"), seed=config.seed, rows_per_step=config.rows_per_step
    )
    masked = [masker(loader.rows_at(step).to("cpu"), step / STEPS) for step in range(STEPS)]
    model = build_model(
        config.model, tokenizer, row_length=tiny_data.row_length, seed=config.seed, attention="row"
    )
    optimiser = config.optimiser
    assert isinstance(optimiser, AdamW)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    theirs = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=1.0,
        betas=(optimiser.beta1, optimiser.beta2),
        eps=optimiser.epsilon,
        weight_decay=optimiser.weight_decay,
        fused=False,
        foreach=False,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        theirs, lambda step: config.learning_rate.at(step, STEPS)
    )
    trainer = Recording(
        [
            {
                "input_ids": batch.input_ids,
                "labels": batch.labels,
                "attention_mask": (batch.input_ids != tokenizer.pad_token_id).long(),
            }
            for batch in masked
        ],
        model=model,
        args=TrainingArguments(
            str(tmp_path / "theirs"),
            max_steps=STEPS,
            per_device_train_batch_size=config.rows_per_step,
            max_grad_norm=0.5,
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=[0] * STEPS,  # pyright: ignore[reportArgumentType]
        optimizers=(theirs, rate),
    )
    trainer.train()
    difference = np.abs(ours - np.array(trainer.losses))
    print(f"largest difference {difference.max():.1e}, last {difference[-1]:.1e}")
    assert ours.shape == (STEPS,)
    assert ours[:10].mean() - ours[200:250].mean() > 1.5
    assert difference.max() < 1e-4
