"""Every arm in every integration: it trains as chronomask's own loop does, or is refused before any work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from chronomask.errors import DataError, UsageError
from chronomask.integrations.arm import read_arm
from chronomask.integrations.lightning import TimeVariantMasking
from chronomask.integrations.order import with_row_ids
from chronomask.integrations.step import StepMasking
from chronomask.integrations.transformers import TimeVariantTrainer
from chronomask.integrations.workers import WorkerMasking
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.rows import RowCollator, as_rows
from chronomask.masking.strategy import Token, WholeWord
from chronomask.masking.tally import class_sums, class_tally
from chronomask.model.documents import DOCUMENTS_ATTENTION
from chronomask.recipes import recipes
from chronomask.train.config import RunConfig
from chronomask.train.foresight import Scorer
from chronomask.train.forward import Forward, Predictions, entering, parts_of
from chronomask.types import UPOS_CLASSES
from tests.support.recording_trainer import without_dropout
from tests.support.tiny_models import sizes
from tests.support.worded_rows import ROW_LENGTH, make_rows, tiny_model

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        "`isinstance.treespec, LeafSpec.` is deprecated",
        ".*`torch.jit",
    )
]

STEPS, ROWS, SEED = 4, 8, 11
LATE = {
    "layer": {"kind": "phases", "phases": [{"until": 0.6, "ratio": 0.5}, {"until": 1, "ratio": 0}]}
}
HALF = {"ratio": {"kind": "constant", "base": 0.5}}
CARRIED: dict[str, Any] = {
    "ratio": "arms/mrd-cosine",
    "law of row ratios": {"ratio": {"kind": "uniform_rows"}},
    "loss weights": "arms/diffusion",
    "content by loss": "arms/amlm",
    "published walk": "arms/ptw-faithful",
    "strength": "arms/ptw-fading-in",
    "learning_progress": "arms/learning-progress",
    "reducible_loss": "arms/reducible-loss",
    "strategy over time": "arms/tokens-to-spans",
    "strategy over time, in shares": "arms/tokens-to-words",
    "collocations": "arms/pmi",
    "hybrid": "arms/gpt-bert",
    "hybrid, with late masks and more": {
        "masking": HALF | {"content": {"kind": "ptw", "ema_decay": 0.5}},
        "objective": {"kind": "hybrid", "causal": {"kind": "linear", "start": 0.6, "end": 0.2}},
        "late_masks": LATE,
        "z_loss": 1e-2,
    },
    "causal_first": {
        "masking": {"content": {"kind": "ptw"}},
        "objective": {"kind": "causal_first", "until": 0.5},
    },
    "z_loss": {"z_loss": 1e-2},
    "late_masks": {"masking": HALF, "late_masks": LATE},
    "model_scores of each step": {"content": {"kind": "model_scores", "every": 1}},
    "model_scores of each step, by loss": {
        "content": {"kind": "model_scores", "every": 1, "measure": "loss", "reference": 3}
    },
    "responsive": {"ratio": {"kind": "responsive", "watch": "training", "every": 1, "patience": 1}},
    "fixed": {"content": {"kind": "fixed", "weights": {"VERB": 3.0}}},
    "scores": {"content": {"kind": "scores", "reference": 2.0, "slope": 3.0}},
    "explored": {
        "ratio": {"kind": "constant", "base": 0.2},
        "strategy": {"kind": "explored", "epochs": 4},
    },
}
"""An arm of each family: what an integration is given, a recipe or a dict."""
REFUSED: dict[str, tuple[Any, str]] = {
    "averaging": ("arms/ema", "^averaging cannot be carried.*AveragedModel"),
    "model_scores of many steps": ("arms/model-scores", "of 100 steps.*masking.content.every to 1"),
    "rows_follow_ratio": (
        {"rows_follow_ratio": True, "masking": {}},
        "^rows_follow_ratio cannot be carried.*data loader",
    ),
    "progress in tokens": ({"progress": "tokens"}, "masking.progress is 'tokens'"),
    "the learning rate": (
        {"learning_rate": {"follow_labels": "sqrt"}, "masking": {}},
        "^learning_rate cannot be carried.*set it where your loop has it.*or train with chronomask",
    ),
    "a misspelt key": ({"objectve": {"kind": "hybrid"}}, "unknown key 'objectve'"),
    "an unknown objective": (
        {"objective": {"kind": "hybrit"}},
        "objective.kind is 'hybrit'.*hybrid",
    ),
}
"""What none carries, and what is said."""


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Rows with every column that an arm may want."""
    made = make_rows(tokenizer, STEPS * ROWS)
    for row in made:
        words = [-1 if word is None else word for word in row["word_ids"]]
        begins = [w >= 0 and (k == 0 or words[k - 1] != w) for k, w in enumerate(words)]
        row["scores"] = [float(k % 5) for k in range(len(words))]
        row["ngrams"] = [
            2 * (begin and word % 3 == 0) for begin, word in zip(begins, words, strict=True)
        ]
    return made


def by_hand(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], arm: Any
) -> list[float]:
    """What every step minimises, in a loop of the parts that chronomask's own loop is made of."""
    config, model = read_arm(arm), without_dropout(tokenizer)
    model.set_attn_implementation(DOCUMENTS_ATTENTION)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    masker = Masker(config.masking, vocabulary, UPOS_CLASSES, SEED)
    forward = Forward(
        model, torch.device("cpu"), "fp32", "documents", int(vocabulary.pad_token_id),
        masks_enter=entering(config.late_masks, model),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    pad, minimised = RowCollator(tokenizer, row_length=ROW_LENGTH).pad, []
    for step in range(STEPS):
        first = step * ROWS
        columns = pad(rows[first : first + ROWS])
        of_step = as_rows(columns | {"row_id": np.arange(first, first + ROWS)}, epoch=0)
        if (ahead := config.masking.content.look_ahead) is not None:
            (scores,) = Scorer(ahead, forward, vocabulary, SEED).score([of_step])
            if ahead.centred:
                scores -= scores.sum() / int(np.count_nonzero(of_step.word_id >= 0))
            object.__setattr__(of_step, "scores", scores.half().float().numpy())
        parts = parts_of(forward, of_step, masker, config.objective, step / STEPS, 1)
        predictions, loss = Predictions.of(parts), torch.zeros(())
        tally = torch.zeros(3, masker.num_feedback_classes, dtype=torch.float64)
        for part in parts:
            losses, correct, log_z = forward.losses(part)
            loss = loss + predictions.contribution(part, losses, log_z, config.z_loss)
            if not part.causal:
                tally += class_sums(
                    masker.feedback_class(part.batch), losses, correct, tally.shape[1]
                )
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if predictions.masked and masker.needs_feedback:
            masker.update(class_tally(tally))
        minimised.append(float(loss.detach()))
    return minimised


def in_trainer(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], arm: Any, folder: Path
) -> list[float]:
    """In two micro-batches a step."""
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=ROWS // 2,
        gradient_accumulation_steps=2, learning_rate=1e-2, lr_scheduler_type="constant",
        max_grad_norm=0, weight_decay=0, logging_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = TimeVariantTrainer(
        without_dropout(tokenizer), arguments, masking=arm, class_names=UPOS_CLASSES,
        masking_seed=SEED, processing_class=tokenizer, train_dataset=rows,
        data_collator=RowCollator(tokenizer, row_length=ROW_LENGTH),
    )  # fmt: skip
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


class Module(pl.LightningModule):
    """What people have, with the one line that these arms need."""

    def __init__(self, model: BertForMaskedLM, masking: TimeVariantMasking) -> None:
        super().__init__()
        self.model, self.masking, self.minimised = model, masking, []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.masking.loss(self.model)
        self.minimised.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)


def in_lightning(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], arm: Any, folder: Path
) -> list[float]:
    masking = TimeVariantMasking(arm, tokenizer, UPOS_CLASSES, SEED)
    module = Module(without_dropout(tokenizer), masking)
    loader = DataLoader(
        with_row_ids(rows),
        batch_size=ROWS,
        collate_fn=RowCollator(tokenizer, row_length=ROW_LENGTH),
    )
    trainer = pl.Trainer(
        max_steps=STEPS, callbacks=[masking], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module.minimised


def in_a_plain_loop(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], arm: Any, folder: Path
) -> list[float]:
    """In two micro-batches a step."""
    masking, model = StepMasking(arm, tokenizer, UPOS_CLASSES, SEED), without_dropout(tokenizer)
    masking.attach(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    loader = DataLoader(
        with_row_ids(rows),
        batch_size=ROWS // 2,
        collate_fn=RowCollator(tokenizer, row_length=ROW_LENGTH),
    )
    batches, minimised = list(loader), []
    for step in range(STEPS):
        of_step = batches[2 * step : 2 * step + 2]
        losses = []
        for micro in masking.begin_step(of_step, step / STEPS, epoch=0):
            losses.append(masking.loss(model, micro))
            losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
        masking.end_step()
        minimised.append(sum(float(loss.detach()) for loss in losses))
    return minimised


LOOPS: dict[str, Callable[..., list[float]]] = {
    "Trainer": in_trainer,
    "Lightning": in_lightning,
    "plain": in_a_plain_loop,
}


@pytest.mark.parametrize("name", CARRIED)
def test_an_arm_trains_as_in_chronomasks_own_loop(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], name: str, tmp_path: Path
) -> None:
    expected = by_hand(tokenizer, rows, CARRIED[name])
    for loop, run in LOOPS.items():
        assert run(tokenizer, rows, CARRIED[name], tmp_path) == pytest.approx(expected, rel=1e-4), (
            loop
        )


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_refused_before_any_work(
    tokenizer: PreTrainedTokenizerFast, name: str, tmp_path: Path
) -> None:
    arm, said = REFUSED[name]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    model = tiny_model(tokenizer)
    for refuse in (
        lambda: StepMasking(arm, tokenizer, UPOS_CLASSES),
        lambda: TimeVariantMasking(arm, tokenizer, UPOS_CLASSES),
        lambda: TimeVariantTrainer(
            model, arguments, masking=arm, class_names=UPOS_CLASSES, processing_class=tokenizer
        ),
    ):
        with pytest.raises(UsageError, match=said):
            refuse()


def test_every_recipe_masks_the_same_units_whatever_the_run_masks() -> None:
    names = [recipe.name for recipe in recipes() if recipe.name.startswith("arms/")]
    units = {"words": WholeWord(), "tokens": Token()}
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    told = {name: row[-1] for row in cells if row for name in re.findall(r"`([^`]+)`", row[0])}
    for name in names:
        of_words, of_tokens = (
            RunConfig.of([base, name], data="d").masking.strategy
            for base in ("bert-tiny", "modernbert-tiny")
        )
        if name == "arms/ema":  # which says nothing of masking
            assert of_words != of_tokens
            continue
        assert of_words == of_tokens, name
        said = told[name.removeprefix("arms/")]
        assert units.get(said, of_words) == of_words, name


def test_a_folder_may_be_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    masking = StepMasking("arms/ptw", tokenizer, UPOS_CLASSES)
    masking.save(str(tmp_path))
    masking.load(str(tmp_path))
    StepMasking("arms/ptw", tokenizer, UPOS_CLASSES).load(tmp_path)
    with pytest.raises(DataError, match="there is no checkpoint folder"):
        masking.load(str(tmp_path / "missing"))


def test_every_recipe_is_carried_or_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    names = [recipe.name for recipe in recipes() if recipe.name.startswith("arms/")]
    refused = []
    for name in names:
        try:
            StepMasking(name, tokenizer, UPOS_CLASSES)
        except UsageError:
            refused.append(name)
    assert refused == ["arms/ema", "arms/model-scores"]


def test_the_table_of_the_docs_is_true(tokenizer: PreTrainedTokenizerFast) -> None:
    """docs/training.md says of each family what is tested here, and of loader workers what they refuse."""
    page = Path(__file__).parents[2] / "docs" / "training.md"
    lines = page.read_text(encoding="utf-8").split("## Other training loops")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    table = {name: said for name, *said in cells[2:]}
    assert cells[0] == ["arm", "Trainer", "Lightning", "plain loop", "loader workers"]
    families = {name: arm for name, arm in CARRIED.items() if ", " not in name}
    assert families.keys() == {name for name, said in table.items() if said[0] == "yes"}
    assert {name for name, said in table.items() if said == ["no"] * 4} <= REFUSED.keys()
    collate = RowCollator(tokenizer)
    for name, arm in families.items():
        own = StepMasking(arm, tokenizer, UPOS_CLASSES).has_own_loss
        try:
            masker = Masker.for_tokenizer(tokenizer, arm, class_names=UPOS_CLASSES)
            WorkerMasking(collate, masker, STEPS)
            workers = "yes"
        except UsageError:
            workers = "no"
        assert table[name] == ["yes", "`masking.loss`" if own else "yes", "yes", workers], name


@pytest.mark.parametrize(
    ("arm", "model_type", "said"),
    [
        ({"objective": {"kind": "hybrid"}}, "mpnet", "'mpnet'.*could see the next token"),
        ({"late_masks": {"layer": 1}}, "mpnet", "layers of model type 'mpnet' cannot be run"),
        ({"late_masks": {"layer": 2}}, "bert", "late_masks.layer is 2; the model has 2 layers"),
    ],
)
def test_a_model_that_cannot_is_refused_when_it_is_attached(
    tokenizer: PreTrainedTokenizerFast, arm: Any, model_type: str, said: str
) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes(model_type))
    model = AutoModelForMaskedLM.from_config(config)
    with pytest.raises(UsageError, match=said):
        StepMasking(arm, tokenizer).attach(model)
    wrapped = torch.nn.ModuleList([model])
    with pytest.raises(UsageError, match=r"the model is a ModuleList.*give that model itself"):
        StepMasking(arm, tokenizer).attach(wrapped)


def test_rows_are_refused_where_padding_stands_before_the_text(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    masking = StepMasking("arms/gpt-bert", tokenizer)
    padded = [dict(row, row_id=k, attention_mask=[0] + [1] * 5) for k, row in enumerate(rows[:2])]
    padded = [
        row | {n: row[n][:6] for n in ("input_ids", "word_ids", "token_class", "scores", "ngrams")}
        for row in padded
    ]
    batch = RowCollator(tokenizer)(padded)
    with pytest.raises(UsageError, match=r"need the model: call attach\(model\)"):
        masking.begin_step([batch], 0.0, epoch=0)
    masking.attach(tiny_model(tokenizer))
    with pytest.raises(DataError, match="row 0 has a 0 before a 1 in its attention_mask"):
        masking.begin_step([batch], 0.0, epoch=0)


def test_state_of_another_objective_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, hybrid = (StepMasking(arm, tokenizer) for arm in ({}, {"objective": {"kind": "hybrid"}}))
    for own, other in ((plain, hybrid), (hybrid, plain)):
        with pytest.raises(UsageError, match="saved with objective = "):
            own.load_state_dict(other.state_dict(), other.settings(), "the checkpoint")
