"""The Lightning Trainer, as it is installed: masks, feedback and resuming."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from chronomask.errors import UsageError
from chronomask.integrations.lightning import TimeVariantMasking
from chronomask.integrations.order import KeyedLoader, with_row_ids
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator
from chronomask.types import UPOS_CLASSES
from tests.support.worded_rows import ROW_LENGTH, tiny_model

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "This DataLoader will create",  # more workers than cores: their number is what is tested
        ".*does not have many workers",
        ".*across ranks is zero",
        "You defined a `validation_step`",
        "You requested to overfit",
        "`isinstance.treespec, LeafSpec.` is deprecated",
        ".*`torch.jit",
        "Checkpoint directory",
        "Be aware that when using `ckpt_path`",
        ".*fork",
    )
]

PTW = MaskingConfig.parse(
    {
        "ratio": {"kind": "linear", "start": 0.4, "end": 0.1},
        "content": {"kind": "ptw", "ema_decay": 0.5},
    }
)


class Module(pl.LightningModule):
    """What people have: a model, its loss, an optimiser."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int = 0, lr: float = 1e-3) -> None:
        super().__init__()
        self.model = tiny_model(tokenizer, seed)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.lr = lr
        self.trained: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        self.trained.append(dict(batch))
        out = self.model(**batch)
        return {"loss": out.loss, "logits": out.logits}

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.validated.append(dict(batch))
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def fit(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    out: Path,
    *,
    module: Module | None = None,
    masking: MaskingConfig = PTW,
    workers: int = 0,
    batch_size: int = 8,
    checkpoint: Path | None = None,
    validate: bool = False,
    **options: Any,
) -> tuple[Module, TimeVariantMasking]:
    module = module or Module(tokenizer)
    callback = TimeVariantMasking(masking, tokenizer, UPOS_CLASSES, seed=11)
    collate = RowCollator(tokenizer, row_length=ROW_LENGTH)
    kind = {"multiprocessing_context": "fork"} if workers else {}
    loader = KeyedLoader(
        rows, batch_size=batch_size, seed=3, collate_fn=collate, num_workers=workers, **kind
    )
    held_out = DataLoader(with_row_ids(rows[:8]), batch_size=8, collate_fn=collate)
    trainer = pl.Trainer(
        default_root_dir=out,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_steps": 6, "callbacks": [callback], "enable_checkpointing": False}
        | ({"callbacks": [callback, *options.pop("callbacks")]} if "callbacks" in options else {})
        | options,
    )
    trainer.fit(module, loader, held_out if validate else None, ckpt_path=checkpoint)
    return module, callback


def seen(batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([torch.stack((b["input_ids"], b["labels"])) for b in batches], dim=1)


def assert_same_state(left: TimeVariantMasking, right: TimeVariantMasking) -> None:
    a, b = left.masking.state_dict(), right.masking.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_worker_counts_change_nothing(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone, first = fit(tokenizer, rows, tmp_path)
    shared, second = fit(tokenizer, rows, tmp_path, workers=4)
    assert len(alone.trained) == 6
    assert torch.equal(seen(alone.trained), seen(shared.trained))
    assert_same_state(first, second)
    assert set(alone.trained[0]) == {"input_ids", "attention_mask", "labels"}


def test_gradient_accumulation_keeps_masks_and_updates_once_a_step(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    # Without learning, the losses, and so the weights and masks, must be those of whole batches.
    whole, first = fit(tokenizer, rows, tmp_path, module=Module(tokenizer, lr=0.0))
    parts, second = fit(
        tokenizer,
        rows,
        tmp_path,
        module=Module(tokenizer, lr=0.0),
        batch_size=2,
        accumulate_grad_batches=4,
    )
    assert torch.equal(seen(whole.trained), seen(parts.trained))
    assert second.masking.masker.content.num_updates == 6
    for name, value in first.masking.state_dict().items():
        torch.testing.assert_close(second.masking.state_dict()[name], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("max_steps", "steps"), [(-1, 13), (9, 9)])
def test_the_schedule_ends_with_the_training_however_many_batches_a_step_has(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    max_steps: int,
    steps: int,
) -> None:
    grows = GradientAccumulationScheduler({0: 1, 1: 2, 2: 8})
    module, _ = fit(
        tokenizer, rows, tmp_path, batch_size=4, callbacks=[grows], max_steps=max_steps, max_epochs=3,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer = module.trainer
    assert trainer.global_step == steps  # 8 batches an epoch: 8 steps, then 4, then 1
    last = 0.4 - 0.3 * (steps - 1) / steps
    assert trainer.callback_metrics["masking_ratio"].item() == pytest.approx(last)


def test_content_state_is_what_the_models_losses_make_it(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    module, callback = fit(tokenizer, rows, tmp_path, module=Module(tokenizer, lr=0.0), max_steps=2)
    by_text = {tuple(row["input_ids"]): row["token_class"] for row in rows}
    loss_average, count_average = np.zeros(len(UPOS_CLASSES)), np.zeros(len(UPOS_CLASSES))
    for batch in module.trained:
        with torch.no_grad():
            inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
            log_p = module.model(**inputs).logits.log_softmax(-1)
        loss_sum, count = np.zeros(len(UPOS_CLASSES)), np.zeros(len(UPOS_CLASSES))
        labels = batch["labels"]
        true_ids = torch.where(labels != -100, labels, -1)
        for row, column in (labels != -100).nonzero().tolist():
            shown = batch["input_ids"][row].tolist()
            true = [t if t >= 0 else s for t, s in zip(true_ids[row].tolist(), shown, strict=True)]
            length = int(batch["attention_mask"][row].sum())
            kind = by_text[tuple(true[:length])][column]
            loss_sum[kind] -= float(log_p[row, column, labels[row, column]])
            count[kind] += 1
        loss_average = 0.5 * loss_average + 0.5 * loss_sum
        count_average = 0.5 * count_average + 0.5 * count
    state = callback.masking.state_dict()
    assert state["content.count_average"].tolist() == count_average.tolist()
    np.testing.assert_allclose(state["content.loss_average"].numpy(), loss_average, rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 4], ids=["within an epoch", "at its end"])
def test_resuming_equals_never_having_stopped(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    stop: int,
    workers: int,
) -> None:
    options: dict[str, Any] = {
        "batch_size": 4,
        "accumulate_grad_batches": 2,
        "workers": workers,
        "max_steps": 7,
        "enable_checkpointing": True,
    }

    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)

    through, first = fit(tokenizer, rows, tmp_path, callbacks=[keep()], **options)
    resumed, second = fit(
        tokenizer,
        rows,
        tmp_path,
        module=Module(tokenizer, seed=99),
        checkpoint=tmp_path / f"step={stop}.ckpt",
        callbacks=[keep()],
        **options,
    )
    assert torch.equal(seen(through.trained[2 * stop :]), seen(resumed.trained))
    assert_same_state(first, second)
    assert all(
        torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True)
    )


def test_validation_uses_the_fixed_masks(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    module, callback = fit(tokenizer, rows, tmp_path, validate=True, max_steps=-1, max_epochs=2)
    first, second = module.validated
    assert torch.equal(first["labels"], second["labels"])
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert callback.masking.masker.content.num_updates == 8
    share = (first["labels"] != -100).sum() / (first["attention_mask"].sum() - 2 * 8)
    assert float(share) == pytest.approx(0.15, abs=0.03)


def test_a_responsive_ratio_watches_what_is_logged(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    ratio = {"kind": "responsive", "patience": 1, "min_improvement": 0.5}
    watching = MaskingConfig.parse({"ratio": ratio})
    _, callback = fit(
        tokenizer, rows, tmp_path, masking=watching, validate=True, max_steps=-1, max_epochs=2
    )
    assert callback.masking.masker.ratio_at(1.0) < 0.3
    with pytest.raises(UsageError, match="there is no validation: give fit"):
        fit(tokenizer, rows, tmp_path, masking=watching)
    held_out = DataLoader(with_row_ids(rows[:8]), batch_size=8, collate_fn=RowCollator(tokenizer))
    alone = TimeVariantMasking(watching, tokenizer)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[alone]
    )
    for _ in range(4):  # not validations of a training
        trainer.validate(Module(tokenizer), held_out, verbose=False)
    assert alone.masking.masker.ratio_at(1.0) == 0.3


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2, "max_epochs": 2},
        {"val_check_interval": 2, "check_val_every_n_epoch": None, "max_steps": 8},
        {"check_val_every_n_epoch": 1, "max_epochs": 2},
    ],
    ids=["in an epoch", "across epochs", "after an epoch"],
)
def test_a_validation_after_a_checkpoint_of_its_step_is_missed_aloud(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
) -> None:
    """Lightning saves first, then validates, and does not validate again on resume."""
    watching = MaskingConfig.parse({"ratio": {"kind": "responsive"}})
    options = {"max_steps": -1, "masking": watching, "validate": True, **options}

    def resumed_from(path: Path) -> tuple[list[str], TimeVariantMasking]:
        caplog.clear()
        _, again = fit(tokenizer, rows, tmp_path, checkpoint=path, **options)
        return [text for text in caplog.messages if "before the validation" in text], again

    keeps = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    ends = ModelCheckpoint(tmp_path / "ends", "{step}", save_top_k=-1)
    _, whole = fit(
        tokenizer, rows, tmp_path, enable_checkpointing=True, callbacks=[keeps, ends], **options
    )
    warned = set()
    for path in tmp_path.glob("*.ckpt"):
        said, again = resumed_from(path)
        if said:
            assert "let ModelCheckpoint save when a validation ends" in said[0]
            warned.add(path.stem)
        elif path.stem != "step=8":  # after which no step trains
            assert_same_state(whole, again)
    every = {"step=4"} if "val_check_interval" not in options else {"step=2", "step=4", "step=6"}
    assert warned - {"step=8"} == every
    at_ends = list((tmp_path / "ends").glob("*.ckpt"))
    assert at_ends
    for path in at_ends:
        said, again = resumed_from(path)
        assert not said
        assert_same_state(whole, again)


def test_a_responsive_ratio_watches_the_mean_over_ranks(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A module logs its own rank's loss, which is another in each of them."""
    seen: list[float] = []
    monkeypatch.setattr(SingleDeviceStrategy, "reduce", lambda _, loss, *__, **___: loss.fill_(7))
    monkeypatch.setattr(Masker, "observe_validation", lambda _, loss: seen.append(loss))
    watching = MaskingConfig.parse({"ratio": {"kind": "responsive"}})
    module, _ = fit(
        tokenizer, rows, tmp_path, masking=watching, validate=True, max_steps=-1, max_epochs=1
    )
    assert seen == [7.0]
    assert module.trainer.callback_metrics["val_loss"] != 7.0  # which others read too


def test_what_would_order_or_mask_rows_otherwise_is_refused(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"takes no sampler.*no overfit_batches"):
        fit(tokenizer, rows, tmp_path, overfit_batches=1)
    plain = [{"input_ids": row["input_ids"]} for row in rows]
    masked = DataLoader(plain, batch_size=8, collate_fn=DataCollatorForLanguageModeling(tokenizer))
    with pytest.raises(UsageError, match="masked already"):
        pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=[TimeVariantMasking(PTW, tokenizer, UPOS_CLASSES)],
        ).validate(Module(tokenizer), masked)


def test_a_batch_that_is_no_dictionary_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    masking = TimeVariantMasking(PTW, tokenizer, UPOS_CLASSES)
    given: Any = ({"input_ids": torch.full((2, 4), 5)}, torch.ones(2))
    for hook in (
        masking.on_train_batch_start,
        masking.on_validation_batch_start,
        masking.on_test_batch_start,
    ):
        trainer, module = pl.Trainer(accelerator="cpu", logger=False), Module(tokenizer)
        with pytest.raises(UsageError, match=r"a batch is of type tuple.*let the loader give one"):
            hook(trainer, module, given, 0)


def test_refusals(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    class Silent(Module):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            return self.model(**batch).loss

    with pytest.raises(UsageError, match="'logits': logits"):
        fit(tokenizer, rows, tmp_path, module=Silent(tokenizer))
    own = MaskingConfig.parse({"loss_per": "row"})
    untrained = Module(tokenizer)
    with pytest.raises(UsageError, match=r"let training_step return masking.loss\(self.model\)"):
        fit(tokenizer, rows, tmp_path, module=untrained, masking=own)
    assert all(
        torch.equal(a, b)
        for a, b in zip(untrained.parameters(), Module(tokenizer).parameters(), strict=True)
    )
    scores = MaskingConfig.parse({"content": {"kind": "model_scores", "every": 1}})
    with pytest.raises(UsageError, match=r"reference to a number of nats.*accumulate_grad_batches"):
        fit(tokenizer, rows, tmp_path, masking=scores, accumulate_grad_batches=2)
    with pytest.raises(UsageError, match="number of training steps is unknown"):
        fit(tokenizer, rows, tmp_path, max_steps=-1, max_epochs=-1)
    _, saved = fit(tokenizer, rows, tmp_path, max_steps=1)
    other = TimeVariantMasking(PTW, tokenizer, UPOS_CLASSES, seed=12)
    with pytest.raises(UsageError, match=re.escape("saved with seed = 11, this run has 12")):
        other.load_state_dict(saved.state_dict())
