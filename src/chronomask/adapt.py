"""Continue an encoder on one's own text, and measure it before and after: the work of ``chronomask adapt``.

    OUT/
      data/     the text, prepared with the checkpoint's tokenizer
      also/     other text that is only measured on, if some was given
      before/   results of the checkpoint as it was, a folder for each text, and one for tasks
      run/      the run: config, metrics, checkpoints
      after/    the same results of what it became
      model/    the continued model with its card: what to use, and to publish
      summary.json   every measure before and after, and what new words did
      .adaptation    says whose folder it is, from the first moment on

With new words, ``start/`` is the checkpoint with rows for them, and ``data-before/`` (and ``also-before/``)
the text as its own tokenizer cuts it, which it is measured on as it was.

Every stage keeps what it finished, so the same command continues where it was interrupted.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from chronomask.adaptation import Adaptation, NewWords, Plan, extend_card, public_name
from chronomask.adaptation_folder import check_apart, check_output, mark, parts_in
from chronomask.config_layers import Layer
from chronomask.errors import DataError, UsageError, amount, nearest, shown
from chronomask.folders import is_prepared_data
from chronomask.progress import be_silent, say
from chronomask.recipes import find_recipe
from chronomask.runs.continuation import begun_by
from chronomask.runs.layout import RunFolder
from chronomask.storage import (
    as_a_shell_has_it,
    read_object,
    refuse_file,
    replacing_folder,
    write_json,
    write_text,
)
from chronomask.vocabulary import need_role

if TYPE_CHECKING:
    from chronomask.data.folder import PreparedData
    from chronomask.evaluate.subject import Subject
    from chronomask.evaluate.task import Task
    from chronomask.model.config import AttentionScope
    from chronomask.runs.result import TaskResult
    from chronomask.train.config import RunConfig

__all__ = ["Adaptation", "NewWords", "Plan", "adapt", "extend_vocabulary"]

_ROW_LENGTH = 256
"""Tokens of a row, unless the checkpoint holds fewer: a few paragraphs, at a quarter of the cost of 512."""
_WARM_UP = 0.06
"""Share of the steps in which the rate rises, as RoBERTa has it (Liu et al., arXiv 1907.11692)."""
_VALIDATIONS, _CHECKPOINTS = 10, 4
_HELD_OUT = 0.05
"""Share of the documents that are measured on: text of one's own is seldom large."""
_DECIDED = {
    "branch": "an adaptation goes on from the checkpoint that is named",
    "data": "the data are made of the text that is named",
    "model": "the model is the checkpoint that is named",
    "sources": "the text is what is named",
    "tokenizer": "the tokenizer is the checkpoint's own",
}
"""Settings that are none here, and what decides them."""


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
    tokenizer, for text that is not there, for a folder that holds something else or the text, and for that
    of another adaptation; otherwise as ``prepare``, ``pretrain`` and ``evaluate`` do.
    """
    from chronomask.evaluate.subject import find_subject
    from chronomask.runs.rules import check_masking

    plan, out = plan or Plan(), as_a_shell_has_it(out)
    _refuse_decided(plan)
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    # Whatever can be refused is, before a model is looked for or a text is read.
    preparation = _preparation(paths, plan)
    also = [] if plan.also is None or is_prepared_data(Path(plan.also)) else [plan.also]
    check_apart(out, [*paths, *also])
    check_output(out, checkpoint)
    asked = _check_plan(plan)
    first = find_subject(str(checkpoint))
    _check_model(first, asked.attention, asked)
    row_length = _row_length(first, plan)
    for task in _tasks(plan):
        task.check(first, Path(plan.task_data or "."))
    loss = _loss(plan, asked.attention)
    if plan.also is not None and is_prepared_data(Path(plan.also)):
        loss.check(first, Path(plan.also))

    tell = say if progress else be_silent
    tell(f"1 of 4: prepare {', '.join(map(str, paths))}")
    start, words = first.path, None
    with mark(out):
        given = {"kind": "folder", "path": str(_tokenizer_folder(first, out))}
        asked_for = given if plan.new_words is None else _extended_tokenizer(given, plan)
        texts = _texts(preparation, asked_for, row_length, plan.also, out, progress)
        old_texts = texts
        if plan.new_words is not None:
            old_texts = _texts(
                preparation, given, row_length, plan.also, out, progress, suffix="-before"
            )
            start = out / "start"
            words = _extend(first, texts["data"].tokenizer_path, start)
    data = texts["data"]
    config = _fit_run(asked, plan, data, start, out.resolve().name)
    check_masking(config, data)  # before anything is measured
    for text in old_texts.values():
        loss.check(first, text.path)
    tell(f"2 of 4: measure {first.name} as it is")
    before = _measure(first, old_texts, plan, asked.attention, out / "before", progress)
    tell(f"3 of 4: train {amount(config.steps, 'steps')}")
    _train(config, out / "run", progress)
    tell("4 of 4: measure it again")
    last = find_subject(str(out / "run"))
    after = _measure(last, texts, plan, asked.attention, out / "after", progress)
    done = Adaptation(out / "model", out / "run", before, after, words)
    _export(first, last, done)
    write_json(out / "summary.json", done.summary())
    return done


def extend_vocabulary(
    checkpoint: str | Path,
    texts: Iterable[str],
    out: str | Path,
    *,
    new_words: int = 1000,
    min_count: int = 10,
) -> NewWords:
    """Write ``checkpoint`` to the folder ``out`` with words of ``texts`` as new tokens of its vocabulary.

    ``texts``: the texts themselves, as strings; a path among them is taken for a text. Those words are
    chosen whose number × the pieces saved is largest, of those that occur ``min_count`` times. A new
    token's rows, in the embeddings and in the head, are the mean of its pieces'. The model is then to be
    trained on: the new tokens have learnt nothing yet.

    Raises UsageError for a checkpoint that is no masked language model with a fast tokenizer of WordPiece,
    BPE or Unigram, for a single string or path as ``texts``, and for a folder that is there; DataError where
    no word qualifies.
    """
    from chronomask.evaluate.subject import find_subject
    from chronomask.prepare.new_words import ExtendedFolder

    if isinstance(texts, str | Path):
        raise UsageError(
            f"texts is {shown(texts)}: give a list of texts, such as [Path('books.txt').read_text()]"
        )
    model, out = find_subject(str(checkpoint)), as_a_shell_has_it(out)
    _check_model(model, "row")
    refuse_file(out, "a checkpoint")
    if out.exists():
        raise UsageError(f"{out} exists already; choose another folder")
    with TemporaryDirectory() as work:
        tokenizer = _tokenizer_folder(model, Path(work))
        numbers = {"new_words": new_words, "min_count": min_count}
        choice = ExtendedFolder.parse({"path": str(tokenizer), **numbers})
        choice.check()
        choice.save(texts, model.max_length, Path(work) / "extended")
        return _extend(model, Path(work) / "extended", out)


def _check_model(model: Subject, attention: AttentionScope, run: RunConfig | None = None) -> None:
    """Raise UsageError for a checkpoint whose kind cannot be continued with such attention, or in such a
    run: with causal rows, or masks that enter late.
    """
    from chronomask.model.attention import check_supported
    from chronomask.train.forward import entering

    model.check_head("AutoModelForMaskedLM")
    if not model.tokenizer.is_fast:
        raise UsageError(
            f"{model.name} has a slow tokenizer ({type(model.tokenizer).__name__}), which does not "
            "report the position of a token in the text: save its fast form beside the weights first "
            "(tokenizer.json)"
        )
    need_role(model.tokenizer, "mask", f"the tokenizer of {model.name}")
    model.check_tokens()
    # Weights that do not fit are refused here, before any text is read.
    opened = model.masked_lm()
    check_supported(opened, attention, causal=run is not None and run.objective.has_causal_rows)
    if run is not None:
        entering(run.late_masks, opened)


def _row_length(model: Subject, plan: Plan) -> int:
    """Tokens of a row, unless the plan names them; raises UsageError where it names more than the model
    has positions for.
    """
    for layer in plan.preparation:
        asked = layer.values.get("row_length")
        if isinstance(asked, int) and asked > model.max_length:
            raise UsageError(
                f"{layer.origin}: {model.name} has positions for {model.max_length} tokens: --row-length "
                f"{model.max_length}, or continue a model of longer rows"
            )
    return min(model.max_length, _ROW_LENGTH)


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
    from chronomask.prepare.read.left_out import Skipped
    from chronomask.prepare.read.sources import find_sources

    layers = [
        Layer("SOURCES", {"sources": [str(source) for source in sources], "held_out": _HELD_OUT}),
        *plan.preparation,
    ]
    config = PrepareConfig.from_layers(layers)
    if not config.held_out:
        raise UsageError(
            "held_out is 0, and what the model gains is measured on held-out text: leave it out "
            f"({_HELD_OUT}), or give another share of the documents"
        )
    find_sources(config.sources, config.fields(), Skipped())
    if plan.also is not None and not is_prepared_data(Path(plan.also)):
        other = PrepareConfig.from_layers([*layers, _of_other_text(plan.also)])
        find_sources(other.sources, other.fields(), Skipped())
    return layers


def _of_other_text(also: str | Path) -> Layer:
    """What is changed to prepare other text than the one that is trained on."""
    return Layer("--also", {"sources": [str(also)], "held_out": 0.5})


def _texts(
    layers: Sequence[Layer],
    tokenizer: Mapping[str, Any],
    row_length: int,
    also: str | Path | None,
    out: Path,
    progress: bool,
    suffix: str = "",
) -> dict[str, PreparedData]:
    """The text, and other text to measure on: prepared data as they are, else prepared like the text."""
    from chronomask.data.folder import PreparedData

    data = _prepare(layers, tokenizer, row_length, out / f"data{suffix}", progress)
    _check_measurable(data, "the text", out)
    if also is None:
        return {"data": data}
    if is_prepared_data(Path(also)):
        return {"data": data, "also": PreparedData.open(Path(also))}
    if tokenizer["kind"] == "extended":  # by words of the text, and not of this one
        tokenizer = {"kind": "folder", "path": str(data.tokenizer_path)}
    other = _prepare(
        [*layers, _of_other_text(also)], tokenizer, row_length, out / f"also{suffix}", progress
    )
    _check_measurable(other, f"--also {also}", out)
    return {"data": data, "also": other}


def _check_measurable(data: PreparedData, name: str, out: Path) -> None:
    """Raise UsageError for text of which nothing is held out, as of a single document."""
    if data.split("held_out").num_rows:
        return
    raise UsageError(
        f"{name} has no held-out rows to measure on: documents are held out as a whole, and these are "
        f"{amount(data.split('train').num_documents, 'documents')}. Give more files, or --set "
        f"txt_documents=lines where each line of a .txt file stands for itself; first remove {parts_in(out)} "
        f"in {out}"
    )


def _prepare(
    layers: Sequence[Layer],
    tokenizer: Mapping[str, Any],
    row_length: int,
    out: Path,
    progress: bool,
) -> PreparedData:
    """The text as it is prepared for the checkpoint; raises UsageError where ``out`` has it otherwise."""
    from chronomask.prepare.config import PrepareConfig
    from chronomask.prepare.pipeline import OtherData, prepare

    first, *changes = layers
    own = {"tokenizer": dict(tokenizer), "row_length": row_length}
    first = replace(first, values={**first.values, **own})
    config = PrepareConfig.from_layers([first, *changes])
    try:
        return prepare(config, out, progress=progress)
    except OtherData as error:
        raise UsageError(
            f"{error.difference}; choose another --out, or remove {parts_in(out.parent)} in {out.parent} to "
            "begin anew"
        ) from None


def _extended_tokenizer(given: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The checkpoint's tokenizer with new words of the text."""
    return {**given, "kind": "extended", "new_words": plan.new_words, "min_count": plan.min_count}


def _extend(model: Subject, tokenizer: Path, folder: Path) -> NewWords:
    """Write the model with rows for an extended tokenizer's words to ``folder``, unless it is there."""
    from chronomask.model.extend import extend_model
    from chronomask.prepare.new_words import NEW_WORDS

    told = read_object(tokenizer / NEW_WORDS)
    if told is None:
        raise DataError(f"{tokenizer} has no {NEW_WORDS}; choose another --out to begin anew")
    num, per_word = len(told["words"]), told["tokens_per_word"]
    if not folder.is_dir():
        with replacing_folder(folder) as made:
            card = f"# {public_name(model)} with {num:,} new words\n"
            extend_model(model.path, tokenizer, made, card)
    return NewWords(num, per_word["before"], per_word["after"])


def _refuse_decided(plan: Plan) -> None:
    """Raise UsageError for changes of what checkpoint and text decide: what is measured and what is trained
    would be two things. So it is for settings that there are none of: those that there are come with it.
    """
    from chronomask.prepare.config import PrepareConfig
    from chronomask.train.config import RunConfig

    both = (*RunConfig.model_fields, *PrepareConfig.model_fields)
    known = [key for key in dict.fromkeys(both) if key not in _DECIDED]
    for layer in (*plan.layers, *plan.preparation):
        for key in (path.partition(".")[0] for path in layer.values):
            if why := _DECIDED.get(key):
                raise UsageError(f"{layer.origin}: {why}; leave it out")
            if key not in known:
                raise UsageError(f"{layer.origin}: unknown key {shown(key)}; {nearest(key, known)}")


def _check_plan(plan: Plan) -> RunConfig:
    """The run as it is asked for, text and checkpoint still unknown; raises UsageError for what cannot be."""
    if not math.isfinite(plan.epochs) or plan.epochs <= 0:
        raise UsageError(f"--epochs {plan.epochs}: give a number of passes above 0")
    if plan.seeds < 1:
        raise UsageError(f"--seeds {plan.seeds}: give a number above 0")
    for task in _tasks(plan):
        task.check_packages()
    if plan.new_words is not None:
        for name, value in (("--new-words", plan.new_words), ("--min-count", plan.min_count)):
            if value < 1:
                raise UsageError(f"{name} {value}: give a number above 0")
        if plan.also is not None and is_prepared_data(Path(plan.also)):
            raise UsageError(
                f"--also {plan.also} is prepared with one tokenizer, and --new-words makes another: name "
                "the text itself, or measure without new words"
            )
    if plan.tasks and plan.task_data is None:
        raise UsageError("name the folder of the tasks' files: --task-data FOLDER")
    return _run_config(plan, {})


def _tasks(plan: Plan) -> list[Task[Any]]:
    from chronomask.evaluate.tasks import make_tasks

    settings = [text for text in plan.task_settings if "mlm" in plan.tasks or text[:4] != "mlm."]
    return make_tasks(plan.tasks, settings) if plan.tasks or settings else []


def _loss(plan: Plan, attention: AttentionScope) -> Task[Any]:
    """What every adaptation measures on held-out rows."""
    from chronomask.evaluate.tasks import make_tasks

    settings = [text for text in plan.task_settings if text[:4] == "mlm."]
    return make_tasks(["mlm"], [f"attention={attention}", *settings])[0]


def _fit_run(asked: RunConfig, plan: Plan, data: PreparedData, start: Path, name: str) -> RunConfig:
    """The run fitted to the amount of text; ``name`` is that of the folder, which the card has too."""
    from chronomask.train.hours import few_validations

    steps = asked.steps
    if not any("steps" in layer.values for layer in plan.layers):
        steps = math.ceil(plan.epochs * data.split("train").num_rows / asked.rows_per_step)
    return _run_config(
        plan,
        {
            "name": name,
            "data": str(data.path),
            "model": {"kind": "checkpoint", "path": str(start)},
            "steps": steps,
            "learning_rate.warmup_steps": round(_WARM_UP * steps),
            "checkpoint.every": max(1, steps // _CHECKPOINTS),
            **few_validations(asked, steps, data.row_length, most=_VALIDATIONS),
        },
    )


def _run_config(plan: Plan, fitted: Mapping[str, Any]) -> RunConfig:
    """The recipe ``adapt``, what is fitted to text and checkpoint, and the plan's changes over both."""
    from chronomask.train.config import RunConfig

    recipe = Layer.of_file(find_recipe("adapt"))
    return RunConfig.from_layers([recipe, Layer("this command", fitted), *plan.layers])


def _train(config: RunConfig, folder: Path, progress: bool) -> None:
    from chronomask.train.checkpoint import OtherRun
    from chronomask.train.loop import pretrain

    try:
        with begun_by("command or call"):
            pretrain(config, folder, resume=RunFolder(folder).is_run(), progress=progress)
    except OtherRun as error:
        raise UsageError(
            f"{error.difference}; repeat the command with the settings that it had, or choose another --out"
        ) from None


def _measure(
    model: Subject,
    texts: Mapping[str, PreparedData],
    plan: Plan,
    attention: AttentionScope,
    out: Path,
    progress: bool,
) -> dict[str, list[TaskResult]]:
    """Losses on the held-out rows of each text, then downstream tasks."""
    from chronomask.evaluate.evaluate import OtherResult, evaluate

    loss = _loss(plan, attention)
    measured = [(name, [loss], text.path, 1) for name, text in texts.items()]
    if plan.tasks and plan.task_data is not None:
        measured.append(("tasks", _tasks(plan), plan.task_data, plan.seeds))
    try:
        return {
            name: evaluate(model, tasks, place, seeds, out / name, progress=progress)
            for name, tasks, place, seeds in measured
        }
    except OtherResult as error:
        both = " and ".join(str(out.with_name(name)) for name in ("before", "after"))
        raise UsageError(
            f"{error.difference}; remove {both} to measure again, and repeat the command"
        ) from None


def _export(first: Subject, last: Subject, done: Adaptation) -> None:
    """The last checkpoint's model with a card that says what it started from and what came of it."""
    with replacing_folder(done.model) as made:
        shutil.copytree(last.path, made, dirs_exist_ok=True)
        card = made / "README.md"
        write_text(card, extend_card(card.read_text(encoding="utf-8"), first, done))
