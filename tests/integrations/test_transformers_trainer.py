"""The Hugging Face Trainer, as it is installed: masks, losses, feedback and resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainingArguments

from chronomask.errors import DataError, UsageError
from chronomask.integrations.lightning import TimeVariantMasking
from chronomask.integrations.order import with_row_ids
from chronomask.integrations.transformers import TimeVariantTrainer
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Vocabulary, fixed_masker
from chronomask.masking.rows import RowCollator, as_rows
from chronomask.types import UPOS_CLASSES
from tests.support.recording_trainer import LINEAR, PTW, same_state, trainer_of, without_dropout
from tests.support.worded_rows import ROW_LENGTH, tiny_model

pytestmark = [
    # More loader workers than this machine has cores: their number is what is tested.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

OVER_TIME: list[dict[str, Any]] = [
    {
        "ratio": {"kind": "uniform_rows", "high": {"kind": "constant", "base": 0.8}},
        "content": {
            "kind": "learning_progress",
            "strength": {"kind": "linear", "start": 0, "end": 1},
        },
        "loss_weight": {"kind": "inverse_ratio"},
        "loss_per": per,
    }
    for per in ("label", "token", "row")
]
"""Dicts, as a script writes them: rows' own ratios, content that fades in, weights of losses."""


def test_worker_counts_change_nothing(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    # Without dropout: worker processes draw their seeds from the generator that dropout draws from.
    alone = trainer_of(tokenizer, rows, tmp_path, PTW, without_dropout(tokenizer))
    shared = trainer_of(
        tokenizer,
        rows,
        tmp_path,
        PTW,
        without_dropout(tokenizer),
        dataloader_num_workers=4,
        dataloader_prefetch_factor=4,
        dataloader_multiprocessing_context="fork",
    )
    alone.train()
    shared.train()
    assert torch.equal(alone.trained.all_inputs(), shared.trained.all_inputs())
    assert torch.equal(alone.trained.all_labels(), shared.trained.all_labels())
    assert same_state(alone, shared)
    assert all(
        torch.equal(a, b)
        for a, b in zip(alone.model.parameters(), shared.model.parameters(), strict=True)
    )


def test_every_step_has_its_own_ratio(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    trainer = trainer_of(tokenizer, rows * 4, tmp_path, LINEAR, per_device_train_batch_size=32)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    asked = [0.4 - 0.3 * step / 6 for step in range(6)]
    assert [line["masking_ratio"] for line in logged] == pytest.approx(asked)
    assert [line["masking_ratio_achieved"] for line in logged] == pytest.approx(asked, abs=0.05)


def test_an_epoch_never_repeats_its_masks(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    constant = MaskingConfig.parse({"ratio": {"kind": "constant", "base": 0.3}})
    trainer = trainer_of(
        tokenizer, rows[:8], tmp_path, constant, max_steps=3, train_sampling_strategy="sequential"
    )
    trainer.train()
    first, second, third = trainer.trained.labels
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("masking", [LINEAR, PTW, *OVER_TIME], ids=range(5))
def test_gradient_accumulation_changes_neither_masks_nor_loss(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    masking: Any,
) -> None:
    whole = trainer_of(tokenizer, rows, tmp_path, masking, without_dropout(tokenizer))
    parts = trainer_of(
        tokenizer,
        rows,
        tmp_path,
        masking,
        without_dropout(tokenizer),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    whole.train()
    parts.train()
    assert len(parts.trained.inputs) == 4 * len(whole.trained.inputs)
    assert torch.equal(whole.trained.all_inputs(), parts.trained.all_inputs())
    assert torch.equal(whole.trained.all_labels(), parts.trained.all_labels())
    for a, b in zip(whole.state.log_history, parts.state.log_history, strict=True):
        for name in a.keys() & {"loss", "grad_norm", "masking_ratio", "masking_ratio_achieved"}:
            # Ratios of single rows are averaged batch by batch.
            loose = masking in OVER_TIME and name == "masking_ratio"
            assert a[name] == pytest.approx(b[name], rel=0.1 if loose else 1e-4), name
    assert parts.masking.masker.content.num_updates == (0 if masking is LINEAR else 6)
    for name, value in whole.masking.state_dict().items():
        torch.testing.assert_close(parts.masking.state_dict()[name], value, rtol=1e-5, atol=0)


def test_the_logged_loss_is_the_mean_over_the_predicted_tokens_of_the_step(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = without_dropout(tokenizer)
    # One row of few tokens and three long ones: a mean of means would weigh the short row too much.
    uneven = [{k: v[:6] for k, v in rows[0].items()}, *rows[1:4]]
    trainer = trainer_of(
        tokenizer,
        uneven,
        tmp_path,
        LINEAR,
        model,
        learning_rate=0.0,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    trainer.train()
    inputs, labels = trainer.trained.all_inputs(), trainer.trained.all_labels()
    with torch.no_grad():
        logits = model(
            input_ids=inputs, attention_mask=(inputs != tokenizer.pad_token_id).long()
        ).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_content_state_is_what_the_models_losses_make_it(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = without_dropout(tokenizer)
    trainer = trainer_of(
        tokenizer,
        rows,
        tmp_path,
        PTW,
        model,
        learning_rate=0.0,
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    collated = RowCollator(tokenizer, row_length=ROW_LENGTH)(
        [dict(row, row_id=k) for k, row in enumerate(rows)]
    )
    loss_average = [0.0] * len(UPOS_CLASSES)
    count_average = [0.0] * len(UPOS_CLASSES)
    for step in range(3):
        loss_sum = [0.0] * len(UPOS_CLASSES)
        count = [0] * len(UPOS_CLASSES)
        for micro in (2 * step, 2 * step + 1):
            inputs, labels = trainer.trained.inputs[micro], trainer.trained.labels[micro]
            classes = collated["token_class"][4 * micro : 4 * micro + 4]
            with torch.no_grad():
                attention = (inputs != tokenizer.pad_token_id).long()
                log_p = model(input_ids=inputs, attention_mask=attention).logits.log_softmax(-1)
            for row, column in (labels != -100).nonzero().tolist():
                kind = int(classes[row, column])
                loss_sum[kind] -= float(log_p[row, column, labels[row, column]])
                count[kind] += 1
        for kind in range(len(UPOS_CLASSES)):
            loss_average[kind] = 0.5 * loss_average[kind] + 0.5 * loss_sum[kind]
            count_average[kind] = 0.5 * count_average[kind] + 0.5 * count[kind]
    state = trainer.masking.state_dict()
    assert int(state["content.num_updates"]) == 3
    assert state["content.count_average"].tolist() == count_average
    np.testing.assert_allclose(state["content.loss_average"].numpy(), loss_average, rtol=1e-5)


def test_resuming_equals_never_having_stopped(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 2,
        "dataloader_multiprocessing_context": "fork",
        "max_steps": 7,
    }
    through = trainer_of(tokenizer, rows, tmp_path / "through", **options)
    through.train()
    checkpoint = tmp_path / "through" / "checkpoint-3"
    resumed = trainer_of(
        tokenizer, rows, tmp_path / "resumed", model=tiny_model(tokenizer, 99), **options
    )
    resumed.train(resume_from_checkpoint=str(checkpoint))
    after = slice(3 * 2, None)
    assert len(resumed.trained.inputs) == 8
    for name in ("inputs", "labels"):
        pairs = zip(
            getattr(through.trained, name)[after], getattr(resumed.trained, name), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    assert same_state(through, resumed)
    assert all(
        torch.equal(a, b)
        for a, b in zip(through.model.parameters(), resumed.model.parameters(), strict=True)
    )
    shutil.rmtree(tmp_path / "through" / "checkpoint-7")
    last = trainer_of(tokenizer, rows, tmp_path / "through", **options)
    last.train(resume_from_checkpoint=True)
    assert same_state(through, last)


def test_a_checkpoint_of_other_masking_is_refused(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    saved = trainer_of(tokenizer, rows, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    saved.train()
    checkpoint = tmp_path / "checkpoint-1"
    with pytest.raises(UsageError, match="saved with masking"):
        trainer_of(tokenizer, rows, tmp_path, LINEAR).train(str(checkpoint))
    (checkpoint / "chronomask.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        trainer_of(tokenizer, rows, tmp_path).train(str(checkpoint))
    (checkpoint / "chronomask.safetensors").unlink()
    with pytest.raises(DataError, match="without time-variant masking"):
        trainer_of(tokenizer, rows, tmp_path).train(str(checkpoint))


def test_evaluation_uses_the_fixed_masks_and_teaches_nothing(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    trainer = trainer_of(
        tokenizer,
        rows,
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
    )
    trainer.train()
    assert trainer.masking.masker.content.num_updates == 4
    labels = trainer.evaluated.labels
    assert len(labels) == 3 * 2
    masker = fixed_masker(Vocabulary.from_tokenizer(tokenizer))
    collate = RowCollator(tokenizer, row_length=ROW_LENGTH)
    features = [dict(row, row_id=k) for k, row in enumerate(rows[:12])]
    for first, start in ((0, 0), (1, 8)):
        expected = masker(as_rows(collate(features[start : start + 8])), 0.0)
        for k in range(first, 6, 2):
            assert torch.equal(labels[k], expected.labels)
            assert torch.equal(trainer.evaluated.inputs[k], expected.input_ids)
    logged = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert trainer.evaluate(eval_dataset=rows[:12])["eval_loss"] == logged[-1]
    plain = [{k: v for k, v in row.items() if k != "token_class"} for row in rows[:12]]
    assert trainer.evaluate(eval_dataset=plain)["eval_loss"] == logged[-1]


def test_a_hugging_face_dataset_needs_no_preparation(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    plain = trainer_of(tokenizer, rows, tmp_path, LINEAR, max_steps=2)
    arrow = trainer_of(tokenizer, datasets.Dataset.from_list(rows), tmp_path, LINEAR, max_steps=2)
    plain.train()
    arrow.train()
    assert torch.equal(plain.trained.all_inputs(), arrow.trained.all_inputs())


def test_responsive_ratio_watches_the_right_loss(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    ratio = {"kind": "responsive", "patience": 1, "min_improvement": 0.5}
    watching = MaskingConfig.parse({"ratio": ratio})
    with pytest.raises(UsageError, match="eval_strategy"):
        trainer_of(tokenizer, rows, tmp_path, watching).train()
    trainer = trainer_of(tokenizer, rows, tmp_path, watching, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert trainer.masking.masker.ratio_at(1.0) < 0.3
    trained = MaskingConfig.parse({"ratio": ratio | {"watch": "training", "every": 1}})
    trainer = trainer_of(tokenizer, rows, tmp_path, trained)
    trainer.train()
    assert trainer.masking.masker.ratio_at(1.0) < 0.3


def test_a_ratio_of_zero_trains_on_nothing(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    nothing = MaskingConfig.parse({"ratio": {"kind": "constant", "base": 0.0}})
    trainer = trainer_of(tokenizer, rows, tmp_path, nothing, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert (trainer.trained.labels[0] == -100).all()


def test_refusals(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(UsageError, match="processing_class"):
        TimeVariantTrainer(tiny_model(tokenizer), arguments, masking=LINEAR)
    with pytest.raises(UsageError, match="compute_loss_func"):
        TimeVariantTrainer(
            masking=LINEAR, processing_class=tokenizer, compute_loss_func=lambda *_: None
        )
    with pytest.raises(UsageError, match="label_smoothing_factor"):
        trainer_of(tokenizer, rows, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(UsageError, match="progress is 'tokens'"):
        trainer_of(tokenizer, rows, tmp_path, MaskingConfig.parse({"progress": "tokens"}))


def test_masking_may_be_typed_plain_or_stored(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    stored = tmp_path / "masking.yaml"
    stored.write_text(LINEAR.to_yaml(), encoding="utf-8")
    for masking in (LINEAR, LINEAR.to_dict(), {"ratio": LINEAR.ratio}, stored, str(stored)):
        trainer = trainer_of(tokenizer, rows, tmp_path, masking)
        assert trainer.masking.masker.config == LINEAR
        callback = TimeVariantMasking(masking, tokenizer, UPOS_CLASSES)
        assert callback.masking.masker.config == LINEAR
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        trainer_of(tokenizer, rows, tmp_path, {"ratio": {"kind": "linaer"}})


def test_row_ids_of_the_data_are_kept(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    own = [dict(row, row_id=100 + k) for k, row in enumerate(rows)]
    assert trainer_of(tokenizer, own, tmp_path).train_dataset is own
    assert with_row_ids(own) is own
