"""Continue an encoder on one's own text, and measure it before and after: the work of ``chronomask adapt``.

    OUT/
      data/     the text, prepared with the checkpoint's tokenizer
      also/     other text that is only measured on, if some was given
      before/   results of the checkpoint as it was, a folder for each text, and one for tasks
      run/      the run: config, metrics, checkpoints
      after/    the same results of what it became
      model/    the continued model with its card: what to use, and to publish

Every stage keeps what it finished, so the same command goes on where it was interrupted.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from chronomask.config import Layer
from chronomask.errors import UsageError
from chronomask.recipes import find_recipe
from chronomask.runs.layout import RunFolder
from chronomask.storage import replacing_folder, write_text

if TYPE_CHECKING:
    from chronomask.data.folder import PreparedData
    from chronomask.evaluate.subject import Subject
    from chronomask.runs.result import TaskResult
    from chronomask.train.config import RunConfig

__all__ = ["Adaptation", "Plan", "adapt"]

_ROW_LENGTH = 256
"""Tokens of a row, unless the checkpoint holds fewer: a few paragraphs, at a quarter of the cost of 512."""
_WARM_UP = 0.06
"""Share of the steps in which the rate rises, as RoBERTa has it (Liu et al., arXiv 1907.11692)."""
_VALIDATIONS, _CHECKPOINTS = 10, 4
_HELD_OUT = 0.05
"""Share of the documents that are measured on: text of one's own is seldom large."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for beside checkpoint, text and folder."""

    epochs: float = 1.0
    """passes over the text, unless ``layers`` name the steps"""
    layers: Sequence[Layer] = ()
    """changes of the run's config, over the recipe ``adapt``"""
    preparation: Sequence[Layer] = ()
    """changes of the preparation"""
    also: str | Path | None = None
    """other text, or prepared data, to measure on before and after: it shows what is forgotten"""
    tasks: Sequence[str] = ()
    """downstream tasks to measure before and after"""
    task_data: Path | None = None
    """folder of their files"""
    seeds: int = 1
    """fine-tuning seeds of each task"""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What came of it."""

    model: Path
    """the continued model, which transformers opens"""
    run: Path
    """the run"""
    before: Mapping[str, Sequence[TaskResult]] = field(repr=False)
    """results of the checkpoint: of the text (``data``), of other text (``also``), of ``tasks``"""
    after: Mapping[str, Sequence[TaskResult]] = field(repr=False)
    """the same of the continued model"""

    def __str__(self) -> str:
        """Every measure before and after, as a table."""
        return _as_text(_table(self.before, self.after))


def adapt(
    checkpoint: str | Path,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    plan: Plan | None = None,
    *,
    progress: bool = True,
) -> Adaptation:
    """Continue ``checkpoint`` on ``sources``, measured before and after; all of it in the folder ``out``.

    ``checkpoint``: a model folder, a run or a checkpoint of one, or a hub name; ``sources``: text as
    ``chronomask prepare`` takes it. Losses are in nats per predicted token of held-out text.

    Raises UsageError before any work for a checkpoint that is no masked language model with a fast
    tokenizer, for text that is not there, and for a folder of another adaptation; otherwise as
    ``prepare``, ``pretrain`` and ``evaluate`` do.
    """
    from chronomask.evaluate.subject import find_subject
    from chronomask.evaluate.tasks import make_tasks

    plan, out = plan or Plan(), Path(out)
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    # Whatever can be refused is, before a model is looked for or a text is read.
    preparation = _preparation(paths, plan)
    asked = _check_plan(plan)
    first = find_subject(str(checkpoint))
    _check_model(first)
    for task in make_tasks(plan.tasks) if plan.tasks else ():
        task.check(first, Path(plan.task_data or "."))
    tokenizer = _tokenizer_folder(first, out)
    row_length = min(first.max_length, _ROW_LENGTH)

    tell = _tell if progress else _be_silent
    tell(f"1 of 4: prepare {', '.join(map(str, paths))}")
    data = _prepare(preparation, tokenizer, row_length, out / "data", progress)
    texts = {"data": data} | _also(plan, preparation, tokenizer, row_length, out, progress)
    config = _fit_run(asked, plan, data, first)
    tell(f"2 of 4: measure {first.name} as it is")
    before = _measure(first, texts, plan, out / "before", progress)
    tell(f"3 of 4: train {config.steps:,} steps")
    _train(config, out / "run", progress)
    tell("4 of 4: measure it again")
    last = find_subject(str(out / "run"))
    after = _measure(last, texts, plan, out / "after", progress)
    _export(first, last, before, after, out / "model")
    return Adaptation(out / "model", out / "run", before, after)


def _check_model(model: Subject) -> None:
    """Raise UsageError for a checkpoint whose kind cannot be continued."""
    model.check_head("AutoModelForMaskedLM")
    if not model.tokenizer.is_fast:
        raise UsageError(
            f"{model.name} has a slow tokenizer ({type(model.tokenizer).__name__}), which does not "
            "report the position of a token in the text: save its fast form beside the weights first "
            "(tokenizer.json)"
        )
    if model.tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer of {model.name} has no mask token, so nothing can be hidden from the model: "
            "choose a masked language model"
        )
    model.masked_lm()  # weights that do not fit are refused here, before any text is read


def _tokenizer_folder(model: Subject, out: Path) -> Path:
    """A folder with the checkpoint's tokenizer as ``tokenizer.json``; made in ``out`` where it has none."""
    if (model.path / "tokenizer.json").is_file():
        return model.path
    made = out / "tokenizer"
    if not made.is_dir():
        with replacing_folder(made) as folder:
            model.tokenizer.save_pretrained(folder)
    return made


def _preparation(sources: Sequence[str | Path], plan: Plan) -> list[Layer]:
    """How the text is prepared, but for what the checkpoint decides.

    Raises UsageError for changes that cannot be, and for text that is not there.
    """
    from chronomask.prepare.config import PrepareConfig
    from chronomask.prepare.read.files import Skipped
    from chronomask.prepare.read.sources import find_sources

    layers = [
        Layer("SOURCES", {"sources": [str(source) for source in sources], "held_out": _HELD_OUT}),
        *plan.preparation,
    ]
    config = PrepareConfig.from_layers(layers)
    find_sources(config.sources, config.fields(), Skipped())
    return layers


def _prepare(
    layers: Sequence[Layer], tokenizer: Path, row_length: int, out: Path, progress: bool
) -> PreparedData:
    from chronomask.prepare.config import PrepareConfig
    from chronomask.prepare.pipeline import prepare

    first, *changes = layers
    own = {"tokenizer": {"kind": "folder", "path": str(tokenizer)}, "row_length": row_length}
    config = PrepareConfig.from_layers([Layer(first.origin, {**first.values, **own}), *changes])
    return prepare(config, out, progress=progress)


def _also(
    plan: Plan,
    layers: Sequence[Layer],
    tokenizer: Path,
    row_length: int,
    out: Path,
    progress: bool,
) -> dict[str, PreparedData]:
    """The other text to measure on: prepared data as they are, else prepared like the text."""
    from chronomask.data.folder import PreparedData
    from chronomask.data.manifest import MANIFEST

    if plan.also is None:
        return {}
    if (Path(plan.also) / MANIFEST).is_file():
        return {"also": PreparedData.open(Path(plan.also))}
    change = Layer("--also", {"sources": [str(plan.also)], "held_out": 0.5})
    return {"also": _prepare([*layers, change], tokenizer, row_length, out / "also", progress)}


def _check_plan(plan: Plan) -> RunConfig:
    """The run as it is asked for, text and checkpoint still unknown; raises UsageError for what cannot be."""
    from chronomask.evaluate.tasks import make_tasks

    if not math.isfinite(plan.epochs) or plan.epochs <= 0:
        raise UsageError(f"--epochs {plan.epochs}: give a number of passes above 0")
    for task in make_tasks(plan.tasks) if plan.tasks else ():
        task.check_packages()
    if plan.tasks and plan.task_data is None:
        raise UsageError("name the folder of the tasks' files: --task-data FOLDER")
    return _run_config(plan, {})


def _fit_run(asked: RunConfig, plan: Plan, data: PreparedData, model: Subject) -> RunConfig:
    """The run fitted to the amount of text."""
    steps = asked.steps
    if not any("steps" in layer.values for layer in plan.layers):
        steps = math.ceil(plan.epochs * data.split("train").num_rows / asked.rows_per_step)
    return _run_config(
        plan,
        {
            "data": str(data.path),
            "model": {"kind": "checkpoint", "path": str(model.path)},
            "steps": steps,
            "learning_rate.warmup_steps": round(_WARM_UP * steps),
            "validation.every": max(1, steps // _VALIDATIONS),
            "checkpoint.every": max(1, steps // _CHECKPOINTS),
        },
    )


def _run_config(plan: Plan, fitted: Mapping[str, Any]) -> RunConfig:
    """The recipe ``adapt``, what is fitted to text and checkpoint, and the plan's changes over both."""
    from chronomask.train.config import RunConfig

    recipe = Layer.of_file(find_recipe("adapt"))
    return RunConfig.from_layers([recipe, Layer("this command", fitted), *plan.layers])


def _train(config: RunConfig, folder: Path, progress: bool) -> None:
    from chronomask.train.loop import pretrain

    pretrain(config, folder, resume=RunFolder(folder).is_run(), progress=progress)


def _measure(
    model: Subject, texts: Mapping[str, PreparedData], plan: Plan, out: Path, progress: bool
) -> dict[str, list[TaskResult]]:
    """Losses on the held-out rows of each text, then downstream tasks."""
    from chronomask.evaluate.evaluate import evaluate
    from chronomask.evaluate.tasks import make_tasks

    results = {
        name: evaluate(model, make_tasks(["mlm"]), text.path, 1, out / name, progress=progress)
        for name, text in texts.items()
    }
    if plan.tasks and plan.task_data is not None:
        results["tasks"] = evaluate(
            model, list(plan.tasks), plan.task_data, plan.seeds, out / "tasks", progress=progress
        )
    return results


_NAMES = {"data": "your text", "also": "the other text", "tasks": ""}


def _table(
    before: Mapping[str, Sequence[TaskResult]], after: Mapping[str, Sequence[TaskResult]]
) -> list[tuple[str, str, float, float]]:
    """Where it was measured, the measure, its mean over seeds before and after."""
    return [
        (_NAMES[group] or task, metric, old, new)
        for group, results in before.items()
        for (task, metric), old in _means(results).items()
        for new in [_means(after[group])[task, metric]]
    ]


def _means(results: Sequence[TaskResult]) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for metric, value in result.metrics.items():
            values.setdefault((result.task, metric), []).append(value)
    return {key: sum(each) / len(each) for key, each in values.items()}


def _as_text(table: Sequence[tuple[str, str, float, float]]) -> str:
    cells = [
        ("measured on", "measure", "before", "after", "change"),
        *(
            (where, metric, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}")
            for where, metric, old, new in table
        ),
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if k < 2 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _export(
    first: Subject,
    last: Subject,
    before: Mapping[str, Sequence[TaskResult]],
    after: Mapping[str, Sequence[TaskResult]],
    folder: Path,
) -> None:
    """The last checkpoint's model with a card that says what it started from and what came of it."""
    with replacing_folder(folder) as made:
        shutil.copytree(last.path, made, dirs_exist_ok=True)
        card = made / "README.md"
        write_text(card, _card(card.read_text(encoding="utf-8"), first, _table(before, after)))


def _card(text: str, first: Subject, table: Sequence[tuple[str, str, float, float]]) -> str:
    """A run's card with the checkpoint it continued, its licence if it states one, and the table."""
    head, body = _parts_of_card(text)
    # A local folder has no name that others could look up; its last part says most.
    name = first.name if not Path(first.name).exists() else Path(first.name).resolve().name
    base, _ = _parts_of_card(_base_card(first))
    head |= {"base_model": name} | {key: base[key] for key in ("license",) if key in base}
    rows = "\n".join(
        f"| {where} | {metric} | {old:.4f} | {new:.4f} |" for where, metric, old, new in table
    )
    section = (
        f"## Continued from {name}\n\n"
        "Measured before and after with the same masks; losses are in nats per predicted token of "
        "held-out text.\n\n"
        f"| measured on | measure | before | after |\n|---|---|---|---|\n{rows}\n\n"
    )
    where = body.find("## Masking")
    body = body[:where] + section + body[where:] if where >= 0 else body + section
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def _base_card(model: Subject) -> str:
    file = model.path / "README.md"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _parts_of_card(text: str) -> tuple[dict[str, Any], str]:
    """The YAML head of a model card, and the rest; an empty head where it has none that can be read."""
    if not text.startswith("---\n"):
        return {}, text
    head, closed, body = text.removeprefix("---\n").partition("\n---\n")
    try:
        values = yaml.safe_load(head)
    except yaml.YAMLError:
        values = None
    return (values, body) if closed and isinstance(values, dict) else ({}, text)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _be_silent(_: str) -> None:
    """Say nothing."""
