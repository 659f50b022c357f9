"""What people change in a script with a Trainer: options, data sets, mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from chronomask.errors import DataError, UsageError
from chronomask.types import UPOS_CLASSES
from tests.support.recording_trainer import (
    LINEAR,
    PTW,
    Recording,
    same_state,
    trainer_of,
    without_dropout,
)
from tests.support.tiny_models import SIZES
from tests.support.worded_rows import tiny_model

CPU = torch.device("cpu")
ALMOST_NOTHING = {
    "input_ids": [2, 20, 21, 3],
    "word_ids": [None, 0, 1, None],
    "token_class": [0, 1, 2, 0],
}
"""A row of which evaluation predicts no token."""
RESPONSIVE = {"ratio": {"kind": "responsive", "patience": 1, "min_improvement": 0.5}}


def test_names_of_classes_are_read_off_the_column(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    plain = datasets.Dataset.from_list(rows)
    with pytest.raises(UsageError, match=r"'ptw' needs token classes.*add_classes.*class_names"):
        trainer_of(tokenizer, plain, tmp_path, given={"class_names": None})
    features = plain.features.copy()
    features["token_class"] = datasets.List(datasets.ClassLabel(names=list(UPOS_CLASSES)))
    named = plain.cast(features)
    trainer = trainer_of(tokenizer, named, tmp_path, max_steps=1, given={"class_names": None})
    trainer.train()
    assert trainer.masking.masker.class_names == UPOS_CLASSES
    uniform = {"class_names": None, "masking": {"content": {"kind": "none"}}}
    trainer = trainer_of(tokenizer, named, tmp_path, max_steps=1, given=uniform)
    assert trainer.masking.masker.class_names == ("none",)  # as before names were read


def test_a_checkpoint_may_be_named_by_a_path(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    through = trainer_of(tokenizer, rows, tmp_path, **options)
    through.train()
    resumed = trainer_of(tokenizer, rows, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert same_state(through, resumed)
    with pytest.raises(DataError, match=r"there is no checkpoint folder .*checkpoint-4"):
        resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-4")


@pytest.mark.parametrize("fails_at", [2, 4], ids=["in the first step", "in the second"])
def test_what_a_step_without_memory_taught_is_forgotten(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    fails_at: int,
) -> None:
    class OutOfMemory(Recording):
        calls = 0

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.calls += 1
            if self.calls == fails_at:
                raise RuntimeError("CUDA out of memory.")
            return loss

    options: dict[str, Any] = {"gradient_accumulation_steps": 2, "learning_rate": 0.0}
    options["model"] = without_dropout(tokenizer)
    trainer = trainer_of(
        tokenizer, rows, tmp_path, kind=OutOfMemory, auto_find_batch_size=True, **options
    )
    trainer.train()
    labels = trainer.trained.labels[fails_at:]
    assert trainer.masking.masker.content.num_updates == 6
    smaller = trainer_of(
        tokenizer, rows, tmp_path, per_device_train_batch_size=labels[0].shape[0], **options
    )
    smaller.train()
    assert all(map(torch.equal, labels, smaller.trained.labels))
    counts = "content.count_average"
    assert torch.equal(trainer.masking.state_dict()[counts], smaller.masking.state_dict()[counts])


def test_a_model_made_anew_begins_with_masking_that_learnt_nothing(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    given = {"model_init": lambda: tiny_model(tokenizer)}
    trainer = trainer_of(tokenizer, rows, tmp_path, given=given)
    trainer.train()
    trainer.train()
    labels = trainer.trained.labels
    assert all(map(torch.equal, labels[:6], labels[6:]))
    assert trainer.masking.masker.content.num_updates == 6


def test_a_checkpoint_saved_on_a_signal_has_the_masking_state(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for callback in trainer.callback_handler.callbacks:
                if state.global_step == 3 and hasattr(callback, "jit_manager"):
                    callback.jit_manager.is_checkpoint_requested = True

    given = {"callbacks": [Stop()]}
    trainer = trainer_of(tokenizer, rows, tmp_path, given=given, enable_jit_checkpoint=True)
    trainer.train()
    assert trainer.state.global_step < 6
    resumed = trainer_of(tokenizer, rows, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    through = trainer_of(tokenizer, rows, tmp_path / "through")
    through.train()
    assert same_state(through, resumed)


def test_the_evaluation_loss_is_the_mean_over_the_predicted_tokens(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    held_out = [*rows[:9], ALMOST_NOTHING]
    losses = [
        trainer_of(
            tokenizer, rows, tmp_path, per_device_eval_batch_size=size, given=given
        ).evaluate(held_out)["eval_loss"]
        for size, given in ((1, {}), (3, {}), (16, {"compute_metrics": lambda _: {}}))
    ]
    # Of rows one by one, that of the last has no mean.
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)


def test_a_loss_of_ones_own_is_evaluated_as_the_trainer_does(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    class Own(Recording):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            loss = torch.tensor(3.0)
            return (
                (loss, {"logits": torch.zeros(len(inputs["labels"]), 1)})
                if return_outputs
                else loss
            )

    assert trainer_of(tokenizer, rows, tmp_path, kind=Own).evaluate()["eval_loss"] == 3.0


class _OwnLoss(Recording):
    """A loss from the model's logits alone, as a subclass of transformers' Trainer computes it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        out = model(**given)
        labels = inputs["labels"]
        loss = torch.nn.functional.cross_entropy(out.logits.transpose(1, 2), labels)
        return (loss, out) if return_outputs else loss


class _LossWithMore(Recording):
    """The way out: more is added to the loss of masking."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **given: Any
    ) -> Any:
        given["return_outputs"] = True
        loss, outputs = super().compute_loss(model, inputs, **given)
        loss = loss + 1e-3 * outputs["logits"].pow(2).mean()
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize(
    "masking", [PTW, {"masking": {"ratio": 0.3}, "z_loss": 1e-4}, {"loss_per": "row"}]
)
def test_a_loss_of_ones_own_begins_with_that_of_masking_where_it_must(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path, masking: Any
) -> None:
    own = trainer_of(tokenizer, rows, tmp_path, masking, kind=_OwnLoss)
    before = [each.clone() for each in own.model.parameters()]
    with pytest.raises(
        UsageError, match=r"let it begin with loss, outputs = super\(\)\.compute_loss\("
    ):
        own.train()
    assert all(map(torch.equal, before, own.model.parameters()))
    trainer_of(tokenizer, rows, tmp_path, LINEAR, kind=_OwnLoss, max_steps=2).train()
    adds = trainer_of(
        tokenizer, rows, tmp_path, masking, kind=_LossWithMore, max_steps=2,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    adds.train()
    assert adds.state.global_step == 2


class _Interrupting(TrainerCallback):
    def on_step_begin(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt


def test_a_responsive_ratio_watches_validations_of_training_alone(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(tokenizer, rows, tmp_path, RESPONSIVE, **options)
    for _ in range(4):
        trainer.evaluate()
    assert trainer.masking.masker.ratio_at(1.0) == 0.3
    broken = trainer_of(tokenizer, rows, tmp_path, RESPONSIVE, max_steps=1, **options)
    broken.add_callback(_Interrupting())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    for _ in range(4):
        broken.evaluate()
    assert broken.masking.masker.ratio_at(1.0) == 0.3
    several = {"eval_dataset": {"web": rows[:4], "books": rows[4:8]}}
    with pytest.raises(UsageError, match=r"watches one validation loss.*dict of web, books"):
        trainer_of(tokenizer, rows, tmp_path, RESPONSIVE, given=several, **options).train()
    trainer_of(tokenizer, rows, tmp_path, LINEAR, given=several, max_steps=1, **options).train()


def test_an_evaluation_on_start_is_not_watched_again_on_resume(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    options |= {"save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(tokenizer, rows, tmp_path / "whole", RESPONSIVE, max_steps=6, **options)
    whole.train()
    for at in (1, 2, 5):
        again = trainer_of(tokenizer, rows, tmp_path / "whole", RESPONSIVE, max_steps=6, **options)
        again.train(str(tmp_path / "whole" / f"checkpoint-{at}"))
        for name, value in whole.masking.state_dict().items():
            assert torch.equal(again.masking.state_dict()[name], value), (at, name)
    assert whole.masking.masker.ratio_at(1.0) != 0.3  # it did respond


class _Unnamed(torch.nn.Module):
    """A model whose forward names no labels."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


class _AnyNames(_Unnamed):
    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


@pytest.mark.parametrize("kind", [_Unnamed, _AnyNames])
def test_evaluation_does_not_go_by_the_names_of_the_models_arguments(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path, kind: Any
) -> None:
    """Labels are never among them: the model is called without."""
    model = tiny_model(tokenizer)
    usual, wrapped = (
        trainer_of(tokenizer, rows, tmp_path, model=each, remove_unused_columns=False)
        for each in (model, kind(model))
    )
    assert wrapped.evaluate()["eval_loss"] == usual.evaluate()["eval_loss"]


def test_rows_made_on_reading_train_as_others_do(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    numbers = datasets.Dataset.from_dict({"place": list(range(len(rows)))})
    made = numbers.with_transform(
        lambda b: {"input_ids": [rows[k]["input_ids"] for k in b["place"]]}
    )
    stored = datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    options: dict[str, Any] = {"max_steps": 2, "remove_unused_columns": False}
    read, kept = (trainer_of(tokenizer, d, tmp_path, LINEAR, **options) for d in (made, stored))
    read.train()
    kept.train()
    assert torch.equal(read.trained.all_labels(), kept.trained.all_labels())


@pytest.mark.parametrize("weighs", [{}, {"loss_weight": {"kind": "inverse_ratio"}}])
def test_rows_are_masked_on_the_host_and_no_number_is_asked_of_the_device(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weighs: dict[str, Any],
) -> None:
    """A device whose tensors have no numbers: to ask for one fails."""
    nowhere = torch.device("meta")
    trainer = trainer_of(tokenizer, rows, tmp_path, LINEAR.to_dict() | weighs)
    expected, divisor = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, CPU)
    monkeypatch.setattr(accelerate.Accelerator, "device", nowhere)
    batches = iter(trainer.get_train_dataloader())
    found, its_divisor = trainer.get_batch_samples(batches, 2, nowhere)
    assert isinstance(divisor, torch.Tensor)
    assert isinstance(its_divisor, torch.Tensor)
    assert (its_divisor.device, its_divisor.dtype) == (nowhere, divisor.dtype)
    for one, other in zip(expected, found, strict=True):
        assert all(isinstance(part.rows.input_ids, np.ndarray) for part in other["masked"].parts)
        assert one["masked"].predictions == other["masked"].predictions
        for name in ("input_ids", "attention_mask", "labels"):
            assert other[name].device == nowhere
            assert (one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype)
    for loader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(rows)):
        batch = next(iter(loader))
        assert all(torch.as_tensor(value).device == CPU for value in batch.values())
        assert trainer.masking.begin_evaluation(batch, nowhere).parts[0].batch.labels.is_meta


def test_any_collator_that_pads_serves_for_training_and_evaluation(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    plain = [{"input_ids": row["input_ids"]} for row in rows]
    own = {"data_collator": DataCollatorWithPadding(tokenizer)}
    padding, usual = (
        trainer_of(tokenizer, plain, tmp_path, LINEAR, given=given, max_steps=2)
        for given in (own, {"data_collator": None})
    )
    for trainer in (padding, usual):
        trainer.train()
        trainer.evaluate()
    assert all(map(torch.equal, padding.trained.labels, usual.trained.labels))
    assert all(map(torch.equal, padding.evaluated.labels, usual.evaluated.labels))


def test_ratios_are_those_since_somebody_asked(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    trainer = trainer_of(tokenizer, rows, tmp_path, LINEAR, logging_strategy="no")
    trainer.train()
    ratios = trainer.masking.take_ratios()
    assert ratios["masking_ratio"] == pytest.approx(0.275, abs=0.02)
    assert trainer.masking.take_ratios() == {}


def test_metrics_of_inputs_get_what_the_model_saw(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    given: list[Any] = []

    def measure(prediction: Any) -> dict[str, float]:
        given.append(prediction)
        return {}

    trainer = trainer_of(
        tokenizer, rows, tmp_path, LINEAR, given={"compute_metrics": measure},
        include_for_metrics=["inputs"],
    )  # fmt: skip
    trainer.evaluate()
    seen = torch.cat(trainer.evaluated.inputs).numpy()
    assert (given[0].inputs == seen).all()
    assert (seen == tokenizer.mask_token_id).any()


Changes = Callable[[PreTrainedTokenizerFast, list[dict[str, Any]]], dict[str, Any]]
MISTAKES: list[tuple[str, Changes]] = [
    (
        "data_collator is a DataCollatorForLanguageModeling, which masks rows itself",
        lambda tokenizer, _: {"data_collator": DataCollatorForLanguageModeling(tokenizer)},
    ),
    (
        "train_dataset is a dict of train, test; give one of them, such as dataset['train']",
        lambda _, rows: {"train_dataset": datasets.DatasetDict(
            {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)}
        )},
    ),
    (
        "eval_dataset has no column 'input_ids' (it has text): tokenise it first",
        lambda _, __: {"eval_dataset": {"a": datasets.Dataset.from_list([{"text": "a"}])}},
    ),
    (
        "train_dataset is columns by name (input_ids, ",
        lambda tokenizer, _: {"train_dataset": tokenizer(["a b", "c"])},
    ),
    (
        "a row of train_dataset is of type str, without columns: tokenise it first",
        lambda _, __: {"train_dataset": ["a b", "c"]},
    ),
    (
        "eval_dataset is columns by name (input_ids), as a tokenizer or a slice of a data set",
        lambda _, rows: {
            "eval_dataset": datasets.Dataset.from_list(
                [{"input_ids": row["input_ids"]} for row in rows]
            )[:4]
        },
    ),
    ("train_dataset has no rows", lambda _, __: {"train_dataset": []}),
    ("masking is 0.15; give a MaskingConfig", lambda _, __: {"masking": 0.15}),
    (
        "masking is Linear(kind='linear', start=0.4, end=0.1); give a MaskingConfig",
        lambda _, __: {"masking": LINEAR.ratio},
    ),
    (
        "the model has weights for 20 tokens, and the tokenizer has 154",
        lambda _, __: {"model_init": lambda: BertForMaskedLM(BertConfig(vocab_size=20, **SIZES))},
    ),
    (
        "the model gives no 'logits' (it gives last_hidden_state, pooler_output)",
        lambda tokenizer, _: {"model_init": lambda: BertModel(tiny_model(tokenizer).config)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("says", "changes"), MISTAKES, ids=[says[:24] for says, _ in MISTAKES])
def test_a_likely_mistake_is_answered_with_what_to_do(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    says: str,
    changes: Changes,
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        trainer_of(tokenizer, rows, tmp_path, given=changes(tokenizer, rows)).train()
