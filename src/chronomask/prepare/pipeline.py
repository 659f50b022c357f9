"""``prepare``: from sources to a folder of prepared rows.

gather (sources → parts of text) → refine (filters, duplicates) → tokenizer → annotate (parts → tokens with
words and classes, by many processes) → assemble (tokens → rows). Stages keep what they finished in
``OUT/.work``, so an interrupted preparation goes on where it stopped; the manifest is written last and
``.work`` removed. Several machines may share the stages before the last (:func:`prepare_share`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Any
from uuid import uuid4

from chronomask.config import diff, differences, kind_of
from chronomask.data.folder import PreparedData, PreparedSplit
from chronomask.data.manifest import MANIFEST, WORK
from chronomask.data.scores import score_split, showing_scores
from chronomask.data.writer import RowWriter, write_column, write_manifest
from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.folders import way_to_prepare_again
from chronomask.locks import lock
from chronomask.machine import available_cores
from chronomask.prepare.clean import (
    FILTER,
    SIGN,
    drop_duplicates,
    filter_part,
    filtered_out,
    sign_part,
)
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.doubts import (
    doubt_language,
    doubt_repeats,
    doubt_validation,
    doubt_vocabulary,
    tell_what_is_thrown_away,
    tell_what_was_left_out,
)
from chronomask.prepare.executors import Share, Stage, Task, run_stage
from chronomask.prepare.output import STATE, alone, check_output, in_use, remove
from chronomask.prepare.read.gather import Gathered, bound_again, gather, is_gathered, sample_texts
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import (
    Found,
    are_as_noted,
    differences_from,
    find_sources,
    snapshot,
)
from chronomask.prepare.rows.annotate import ANNOTATE, PartJob, annotate_part, counts_of, forget
from chronomask.prepare.rows.assemble import DOCUMENTS_FILE, statistics, write_split, write_table
from chronomask.prepare.rows.pack import Specials
from chronomask.prepare.tokenizer import SavedTokenizer, open_saved
from chronomask.prepare.work import SPLITS, WORK_FORMAT, mark_file, read_mark, read_text
from chronomask.progress import Progress, say
from chronomask.storage import (
    as_a_shell_has_it,
    lock_of,
    remove_all,
    said_by_system,
    write_json,
    write_text,
)

__all__ = ["OtherData", "prepare", "prepare_share"]

_PARTS_LOOKED_AT = 8
"""Parts of the text, evenly spread, whose letters and words are looked at."""
_SECONDS_TO_BEGIN = 10.0
"""How long a share waits for another one to begin the work folder."""


class OtherData(UsageError):
    """A finished folder was prepared with another config, or from text that has changed since."""

    def __init__(self, difference: str) -> None:
        self.difference = difference
        super().__init__(
            f"{difference}; choose another --out, or let chronomask prepare replace it with --force"
        )


def prepare(
    config: PrepareConfig | Mapping[str, Any] | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    force: bool = False,
    progress: bool = True,
    **changes: Any,
) -> PreparedData:
    """Prepare ``out`` and open it. A finished folder of the same config and sources is reused.

    ``config``: a config, a dict of its keys, the path of one as YAML, or the text itself: a file, a folder
    or a pattern, or a list of them. ``changes``: keys of :class:`PrepareConfig` that differ, such as
    ``row_length=512``. ``force`` replaces what is in ``out``.

    Raises :class:`UsageError` where ``out`` holds something else (unless ``force``) or the config asks
    for what is not there, :class:`DataError` for unusable sources, :class:`RunError` where the disk or
    the workers fail. A half-written folder cannot be opened.
    """
    _refuse_in_worker()
    run = _Run.of(PrepareConfig.of(config, **changes), as_a_shell_has_it(out), progress)
    if not force and run.is_finished():
        return run.reuse()
    run.check_tagger()
    made = not run.out.exists()
    try:
        with alone(run.out):
            if force:
                remove(run.out)
            elif run.is_finished():  # by another process since
                return run.reuse()
            with run.going(), run.clearing():
                if not run.is_begun():
                    run.begin()
                return run.assemble(*run.until_annotated())
    finally:
        if made:  # and nothing was written there
            with suppress(OSError):
                run.out.rmdir()


def _refuse_in_worker() -> None:
    """Raise UsageError in a worker, which imports the script that started it, before it prepares itself."""
    if getattr(current_process(), "_inheriting", False):
        raise UsageError(
            "a worker process reads the script that started it, and the script prepares as it is read: put "
            'the call of prepare below a line  if __name__ == "__main__":'
        )


def prepare_share(
    config: PrepareConfig, out: str | Path, share: Share, *, progress: bool = True
) -> int:
    """Do one share of a preparation, beside other machines that see ``out`` and the sources.

    What only one can do, such as reading, the first one does, and the others wait for it. Where a stage
    needs all parts of the one before, parts that nobody has in hand are done too. Returns how many
    parts are left to other shares; when none is, :func:`prepare` finishes the folder. Raises as
    :func:`prepare` does, and :class:`UsageError` where other shares have another config.
    """
    run = _Run.of(config, as_a_shell_has_it(out), progress, share)
    if not run.is_finished():
        run.check_tagger()
    with _beside_others(run), run.going():
        if run.is_finished():
            run.reuse()
            return 0
        if not run.is_begun():
            raise run.refusal(run.other_begun() or "its beginning was interrupted")
        gathered, _, _ = run.until_annotated()
        marks = (mark_file(run.work, ANNOTATE, number) for number in range(gathered.num_parts))
        return sum(not mark.is_file() for mark in marks)


@contextmanager
def _beside_others(run: _Run) -> Iterator[None]:
    """Other shares may write the folder meanwhile, a whole preparation may not.

    Who finds nobody else there begins the work folder, if it has to be begun.
    """
    # Shares are meant to be at work at once, and each leaves to another what that one has locked. Without
    # locks several would write the same files, so they are needed.
    with lock(lock_of(run.out), needed=True) as nobody_else:
        if nobody_else and not (run.is_finished() or run.is_begun()):
            run.begin()
    with lock(lock_of(run.out), together=True, seconds=_SECONDS_TO_BEGIN, needed=True) as mine:
        if not mine:
            raise in_use(run.out)
        yield


@dataclass(frozen=True)
class _Run:
    """One preparation by this process: all of it, or a share."""

    config: PrepareConfig
    out: Path
    sources: list[Found]
    skipped: Skipped
    state: dict[str, Any]
    """What the rows are made of; a work folder of another state is not gone on with."""
    shown: bool
    share: Share | None

    @classmethod
    def of(cls, config: PrepareConfig, out: Path, shown: bool, share: Share | None = None) -> _Run:
        """Find the sources, and refuse at once what cannot be."""
        for part in (config.executor, config.deduplication, config.tokenizer):
            part.check()
        for choice in config.filters:
            choice.step()
        skipped = Skipped()
        sources = find_sources(config.sources, config.fields(), skipped)
        state = {
            "work_format": WORK_FORMAT,
            "config": config.shaping(),
            "sources": snapshot(sources) + config.tokenizer.state(),
        }
        check_output(out)
        return cls(config, out, sources, skipped, state, shown, share)

    @property
    def work(self) -> Path:
        """The work folder; its path is good wherever a worker runs."""
        return self.out.resolve() / WORK

    def is_finished(self) -> bool:
        """Whether the folder is prepared data."""
        return (self.out / MANIFEST).is_file()

    def reuse(self) -> PreparedData:
        """Open the finished folder; raises :class:`UsageError` if it was prepared from something else."""
        data = PreparedData.open(self.out)
        try:
            before = PrepareConfig.load(self.out / "config.yaml")
        except ChronomaskError as error:
            raise DataError(f"{error}; {way_to_prepare_again(self.out)}") from None
        changes = diff(before.without_workers(), self.config.without_workers())
        if changes:
            raise OtherData(f"{self.out} was prepared with another config: {_listing(changes)}")
        noted, now = data.statistics.get("sources", []), self.state["sources"]
        if not are_as_noted(now, noted):
            what = differences_from(noted, now)
            raise OtherData(f"the sources have changed since {self.out} was prepared{what}")
        if self.work.is_dir():  # of a preparation that was killed behind its manifest
            with suppress(UsageError), alone(self.out):
                remove_all(self.work, ignore_errors=True)
        return data

    def is_begun(self) -> bool:
        """Whether the work folder is of this very preparation."""
        mark = self.work / STATE
        return mark.is_file() and mark.read_text() == json.dumps(self.state, sort_keys=True)

    def other_begun(self) -> str | None:
        """What differs, as a clause, where the work folder is of another preparation; None elsewhere."""
        mark = self.work / STATE
        there = json.loads(mark.read_text()) if mark.is_file() else {}
        if not there or self.is_begun():
            return None
        if there.get("work_format") != WORK_FORMAT:
            return "another version of chronomask began it"
        changes = differences(there["config"], self.state["config"])
        if changes:
            return _listing(changes)
        what = differences_from(there["sources"], self.state["sources"])
        return f"the sources or the tokenizer have changed since{what}"

    def begin(self) -> None:
        """Make the work folder; what another preparation left is removed, but never by a share."""
        other = self.other_begun()
        if other is not None:
            if self.share is not None:
                raise self.refusal(other)
            tell_what_is_thrown_away(self.out, other)
        doubt_repeats(self.state["sources"])
        remove(self.out)
        write_text(self.work / STATE, json.dumps(self.state, sort_keys=True))

    def refusal(self, other: str) -> UsageError:
        """The error of a share where another preparation was begun, from which ``other`` differs."""
        return UsageError(
            f"{self.out} holds an unfinished preparation that other shares began: {other}; give every share "
            "the same, choose another --out, or prepare all of it anew with --force and without --only"
        )

    def check_tagger(self) -> None:
        """Refuse, before anything is written, a tagger that is not there; a finished folder needs none."""
        self.config.tagger.check()
        self.config.tagger.label()

    @contextmanager
    def clearing(self) -> Iterator[None]:
        """What is refused before its text was read leaves no unfinished preparation behind."""
        try:
            yield
        except (UsageError, DataError):
            if not is_gathered(self.work):
                remove(self.out)
                remove_all(self.work)
            raise

    @contextmanager
    def going(self) -> Iterator[None]:
        """Errors of the system say how to go on."""
        try:
            yield
        except Exception as error:
            if (why := said_by_system(error)) is None:
                raise
            raise RunError(
                f"preparing {self.out} stopped: {why}; run the same command again to continue"
            ) from error
        finally:
            forget()

    @contextmanager
    def once(self) -> Iterator[None]:
        """Do what only one of several shares can do at a time; who comes second finds it done."""
        if self.share is None:
            yield
            return
        seconds = 0.0
        while True:
            with lock(self.work / "once", seconds=seconds, needed=True) as mine:
                if mine:
                    yield
                    return
            self.say("waiting for what another share does for all")
            seconds = math.inf

    def say(self, line: str) -> None:
        """Tell people what goes on, if they want to know."""
        if self.shown:
            say(line)

    def stage(self, name: str, task: Task, *, runs_on_torch: bool = False) -> Stage:
        """A stage of this preparation."""
        return Stage(name, self.work, task, runs_on_torch, shared=self.share is not None)

    def run(self, stage: Stage, label: str, gathered: Gathered, *, whole: bool = True) -> None:
        """Run a stage by the workers of the config.

        ``whole``: what follows needs every part, so a share goes on with those of others that nobody
        has in hand, and waits for the rest.
        """
        numbers, sizes = list(range(gathered.num_parts)), gathered.part_characters
        if self.share is not None:
            own = list(filter(self.share.has, numbers))
            numbers = own + [number for number in numbers if not self.share.has(number)] * whole
        total, before = (
            sum(sizes[k] for k in some) for some in (numbers, filter(stage.is_done, numbers))
        )
        with Progress(label, total, "characters", shown=self.shown, done=before) as bar:

            def report(number: int) -> None:
                known = read_mark(self.work, stage.name, number)
                counted = ("num_documents", "num_words")
                others = {key[4:]: known[key] for key in counted} if stage.name == ANNOTATE else {}
                bar.advance(sizes[number], **others)

            workers = self.config.workers or available_cores()
            run_stage(stage, numbers, workers, self.config.executor, report)

    def until_annotated(self) -> tuple[Gathered, SavedTokenizer, PartJob]:
        """Every stage before the rows; of the last one a share does its own parts alone."""
        config, tagger = self.config, self.config.tagger
        with self.once():
            if not config.tokenizer.needs_text:  # refused before the reading starts
                self.tokenizer(None)
            with Progress("reading", None, "characters", shown=self.shown) as bar:
                gathered = gather(
                    self.work,
                    self.sources,
                    config.fields(),
                    self.skipped,
                    bar,
                    min_characters=config.min_characters,
                    part_characters=config.part_characters,
                    held_out=config.held_out,
                )
        gathered = self.refine(gathered)
        if self.share is None:
            few = _spread(gathered.num_parts, _PARTS_LOOKED_AT)
            texts = [document.text for part in few for document in read_text(self.work, part)]
            doubt_language(texts, config.tokenizer, tagger)
        class_names = tagger.classes_of(gathered.tags)
        with self.once():
            tokenizer = self.tokenizer(gathered)
            if tagger.learns is not None and not (self.out / tagger.learns).is_file():
                tagger.learn(self.sample(gathered), self.out)
        job = PartJob(
            run=uuid4().hex,
            tokenizer=str(tokenizer.folder.resolve()),
            tagger=tagger,
            class_names=class_names,
            out=str(self.out.resolve()),
            special_ids=tokenizer.special_ids,
            vocab_size=tokenizer.vocab_size,
            held_out_below=gathered.held_out_below,
            keeps_documents=bool(config.id_key or config.metadata_keys),
        )
        stage = self.stage(
            ANNOTATE, partial(annotate_part, job), runs_on_torch=tagger.runs_on_torch
        )
        self.run(stage, "tokenising and tagging", gathered, whole=False)
        return gathered, tokenizer, job

    def refine(self, gathered: Gathered) -> Gathered:
        """What is left after filters and deduplication; raises :class:`DataError` if nothing is."""
        config = self.config
        if config.filters:
            self.run(
                self.stage(FILTER, partial(filter_part, config.filters)), "filtering", gathered
            )
            gathered = gathered.without(*filtered_out(self.work, gathered.num_parts))
        if config.deduplication.reason is not None:
            stage = self.stage(SIGN, partial(sign_part, config.deduplication))
            self.run(stage, "finding duplicates", gathered)
            with self.once():
                left = drop_duplicates(self.work, gathered.num_parts, config.deduplication)
            gathered = gathered.without(*left)
        if config.filters or config.deduplication.reason is not None:
            gathered = bound_again(self.work, gathered, config.held_out)
        return gathered

    def sample(self, gathered: Gathered | None) -> Iterator[str]:
        """Training text to learn from; nothing where none was gathered."""
        if gathered is None:
            return iter(())
        return sample_texts(self.work, gathered, self.config.tokenizer_sample_characters)

    def tokenizer(self, gathered: Gathered | None) -> SavedTokenizer:
        """The folder ``out/tokenizer``, made whole under another name first."""
        final, choice = self.out / "tokenizer", self.config.tokenizer
        if not final.is_dir():
            if choice.needs_text:
                self.say(choice.announce())
            temporary = self.work / "tokenizer"
            remove_all(temporary, ignore_errors=True)
            choice.save(self.sample(gathered), self.config.row_length, temporary)
            temporary.replace(final)
        return open_saved(final)

    def assemble(self, gathered: Gathered, tokenizer: SavedTokenizer, job: PartJob) -> PreparedData:
        """Write the rows and what is said of them, the manifest last; the work folder is removed."""
        config, out = self.config, self.out
        if job.keeps_documents:
            write_table(self.work, gathered.num_parts, config.metadata_keys, out / DOCUMENTS_FILE)
        specials = Specials(tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
        parts = [counts_of(self.work, number) for number in range(gathered.num_parts)]
        sizes = {split: [int(part.characters[split][0]) for part in parts] for split in SPLITS}
        entries, counts = {}, {}
        total = sum(map(sum, sizes.values()))
        with Progress("writing rows", total, "characters", shown=self.shown) as bar:
            for split in SPLITS:
                writer = RowWriter(out, split, config.row_length, tokenizer.vocab_size)
                entries[split], counts[split] = write_split(
                    self.work,
                    writer,
                    split,
                    gathered.num_parts,
                    config.packing,
                    config.row_length,
                    specials,
                    lambda number, of=sizes[split]: bar.advance(of[number]),
                )
        if not entries["train"].num_rows:
            raise DataError(
                "no document gave a token to train on; check the sources and the tokenizer"
            )
        rows = {
            split: PreparedSplit(out / split, entry, config.row_length, "")
            for split, entry in entries.items()
        }
        with showing_scores(rows, shown=self.shown) as bar:
            scorer = config.scores.learn(rows["train"], bar)
            if scorer is not None:
                for split, entry in entries.items():
                    scores = score_split(scorer, rows[split], bar)
                    entries[split] = write_column(out, split, entry, "scores", scores)
        report = statistics(counts, job.class_names, gathered, parts, self.state["sources"])
        write_json(out / "statistics.json", report, indent=1)
        # Workers and executor are this machine's business: equal rows come with an equal config.
        write_text(out / "config.yaml", config.without_workers().to_yaml())
        values = {
            "tokenizer_sha256": tokenizer.sha256,
            "tagger": config.tagger.label(),
            "class_names": job.class_names,
            "row_length": config.row_length,
            "packing": kind_of(config.packing),
            "pad_token_id": tokenizer.pad_id,
            "vocab_size": tokenizer.vocab_size,
        } | ({} if scorer is None else {"scores": kind_of(config.scores)})
        write_manifest(out, values, entries, self._other_files())
        remove_all(self.work)
        data = PreparedData.open(out)
        if config.held_out:
            held_out, train = (report["splits"][split]["tokens"] for split in ("held_out", "train"))
            split = data.split("held_out")
            parts = max(split.num_rows, split.num_documents)
            texts = [Path(str(source)).suffixes for source in self.sources]
            by_lines = config.txt_documents != "lines" and any(".txt" in each for each in texts)
            doubt_validation(
                held_out, parts, train, gathered.num_documents, config.held_out, may_split=by_lines
            )
        tell_what_was_left_out(report)
        doubt_vocabulary(data, config.tokenizer)
        return data

    def _other_files(self) -> list[str]:
        """What a preparation writes beside the rows, relative to ``out``."""
        learnt = self.config.tagger.learns
        names = ["config.yaml", "statistics.json", *([learnt] if learnt else []), DOCUMENTS_FILE]
        single = [name for name in names if (self.out / name).is_file()]
        folder = sorted(file.name for file in (self.out / "tokenizer").iterdir())
        return single + [f"tokenizer/{name}" for name in folder]


def _listing(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The keys of two configs that differ, with both values."""
    return "; ".join(f"{key} is {was!r} there, {now!r} here" for key, (was, now) in changes.items())


def _spread(num: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``num``, evenly spread."""
    return sorted({k * num // most for k in range(most)}) if num else []
