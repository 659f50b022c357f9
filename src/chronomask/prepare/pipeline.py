"""``prepare``: from sources to a folder of prepared rows, in four stages.

gather (sources → parts of text) → tokenizer → annotate (parts → tokens with words and classes, by many
processes) → assemble (tokens → rows). Stages keep what they finished in ``OUT/.work``, so an
interrupted preparation goes on where it stopped; the manifest is written last and ``.work`` removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chronomask.config import diff
from chronomask.data.folder import PreparedData
from chronomask.data.manifest import MANIFEST
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.prepare.clean.deduplicate import check_minhash
from chronomask.prepare.clean.filters import check_filters
from chronomask.prepare.clean.refine import refine
from chronomask.prepare.config import (
    ColumnTagger,
    FrequencyBands,
    MinHashDuplicates,
    PrepareConfig,
    TokenizerFolder,
    Unigram,
)
from chronomask.prepare.executors import check_executor
from chronomask.prepare.progress import Progress
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.read.gather import gather, sample_texts
from chronomask.prepare.read.sources import (
    AnySource,
    fields_of_config,
    file_state,
    find_sources,
    snapshot,
)
from chronomask.prepare.rows.assemble import statistics, write_split
from chronomask.prepare.rows.documents import DOCUMENTS_FILE, write_table
from chronomask.prepare.rows.engine import PartJob, run_parts
from chronomask.prepare.rows.pack import Specials
from chronomask.prepare.tokenizer import SavedTokenizer, build_tokenizer, find_tokenizer, open_saved
from chronomask.prepare.unigram import check_unigram
from chronomask.prepare.words.bands import BANDS_FILE, count_words, make_bands
from chronomask.prepare.words.columns import class_names_of
from chronomask.prepare.words.taggers import describe_tagger
from chronomask.prepare.work import SPLITS
from chronomask.storage import write_bytes

__all__ = ["prepare"]

_WORK = ".work"
_LOCK = ".lock"
_FILES = ("config.yaml", "statistics.json", BANDS_FILE, DOCUMENTS_FILE)


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
    the workers give up. Nothing half-written can be opened.
    """
    config, out = PrepareConfig.of(config, **changes), Path(out)
    check_executor(config.executor)
    check_filters(config.filters)
    if isinstance(config.deduplication, MinHashDuplicates):
        check_minhash()
    if isinstance(config.tokenizer, Unigram):
        check_unigram()
    skipped = Skipped()
    fields = fields_of_config(config)
    sources = find_sources(config.sources, fields, skipped)
    state = {"config": config.shaping(), "sources": snapshot(sources)}
    if isinstance(config.tokenizer, TokenizerFolder):
        state["sources"] += [file_state(find_tokenizer(config.tokenizer.path))]
    if not _may_write(out):
        raise UsageError(f"{out} exists and is not prepared data; choose another --out")
    if not force and (out / MANIFEST).is_file():
        return _reuse(out, config, state)
    with _alone(out):
        if force:
            _remove(out)
        elif (out / MANIFEST).is_file():  # finished by another process since
            return _reuse(out, config, state)
        try:
            return _prepare(config, out, sources, skipped, state, progress)
        except OSError as error:
            raise RunError(
                f"preparing {out} stopped: {error.strerror or error}; "
                "run the same command again to continue"
            ) from error


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other preparation writes ``out`` meanwhile; a killed one's lock is gone with its process."""
    mark = out / _LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(mark, timeout=0)
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another process is preparing {out}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UsageError(f"{out} cannot be used as a folder: {error.strerror}") from None
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        lock.release()


def _prepare(
    config: PrepareConfig,
    out: Path,
    sources: list[AnySource],
    skipped: Skipped,
    state: dict[str, Any],
    shown: bool,
) -> PreparedData:
    tagger_name, class_names = describe_tagger(config.tagger)
    work = _work_folder(out, state)
    workers = config.workers or os.cpu_count() or 1
    tokenizer: SavedTokenizer | None = None
    if isinstance(config.tokenizer, TokenizerFolder):  # refused before the reading starts
        tokenizer = _tokenizer(config, out, work, ())
    with Progress("reading", shown=shown) as bar:
        gathered = gather(work, config, sources, skipped, bar)
    gathered = refine(work, config, gathered, workers, shown)
    if isinstance(config.tagger, ColumnTagger):
        class_names = class_names_of(config.tagger, gathered.tags)
    if tokenizer is None:
        if shown:
            print(f"training a {config.tokenizer.kind} tokenizer", file=sys.stderr, flush=True)
        sample = sample_texts(work, gathered, config.tokenizer_sample_characters)
        tokenizer = _tokenizer(config, out, work, sample)
    if isinstance(config.tagger, FrequencyBands) and not (out / BANDS_FILE).is_file():
        sample = sample_texts(work, gathered, config.tokenizer_sample_characters)
        make_bands(count_words(sample), config.tagger.num_bands).save(out)
    specials = Specials(tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    job = PartJob(
        str(tokenizer.folder.resolve()),
        tokenizer.sha256,
        config.tagger.to_dict(),
        class_names,
        str(out.resolve()),
        tokenizer.special_ids,
        tokenizer.vocab_size,
        gathered.held_out_below,
        bool(config.id_key or config.metadata_keys),
    )
    with Progress("tokenising and tagging", gathered.num_characters, shown) as bar:
        parts = run_parts(work, gathered.num_parts, job, workers, bar, config.executor)

    if job.keeps_documents:
        write_table(work, gathered.num_parts, config.metadata_keys, out / DOCUMENTS_FILE)
    entries, counts = {}, {}
    for split in SPLITS:
        writer = RowWriter(out, split, config.row_length, tokenizer.vocab_size)
        entries[split], counts[split] = write_split(
            work, writer, split, gathered.num_parts, config.packing, config.row_length, specials
        )
    if not entries["train"].num_rows:
        raise DataError("no document gave a token to train on; check the sources and the tokenizer")
    values = {
        "tokenizer_sha256": tokenizer.sha256,
        "tagger": tagger_name,
        "class_names": class_names,
        "row_length": config.row_length,
        "packing": config.packing.kind,
        "pad_token_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
    }
    report = statistics(counts, class_names, gathered, parts, state["sources"])
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_bytes(out / "statistics.json", text.encode())
    # Workers and executor are this machine's business: equal rows come with an equal config.
    write_bytes(out / "config.yaml", config.shaped().to_yaml().encode())
    write_manifest(out, values, entries, _other_files(out))
    shutil.rmtree(work)
    return PreparedData.open(out)


def _other_files(out: Path) -> list[str]:
    """What a preparation writes beside the rows, relative to ``out``."""
    single = [name for name in _FILES if (out / name).is_file()]
    folder = sorted(file.name for file in (out / "tokenizer").iterdir())
    return single + [f"tokenizer/{name}" for name in folder]


def _tokenizer(config: PrepareConfig, out: Path, work: Path, sample: Any) -> SavedTokenizer:
    """The folder ``out/tokenizer``, made whole under another name first."""
    final = out / "tokenizer"
    if not final.is_dir():
        temporary = work / "tokenizer"
        shutil.rmtree(temporary, ignore_errors=True)
        build_tokenizer(config.tokenizer, sample, config.row_length, temporary)
        temporary.replace(final)
    return open_saved(final)


def _work_folder(out: Path, state: dict[str, Any]) -> Path:
    """``out/.work`` of this very preparation; what another one left is removed."""
    work = out / _WORK
    mark = work / "state.json"
    text = json.dumps(state, sort_keys=True)
    if not (mark.is_file() and mark.read_text() == text):
        _remove(out)
        work.mkdir(parents=True, exist_ok=True)
        write_bytes(mark, text.encode())
    return work


def _may_write(out: Path) -> bool:
    """Whether ``out`` is free, or prepared data, or a preparation that did not finish."""
    if not out.exists():
        return True
    return out.is_dir() and (
        (out / MANIFEST).is_file()
        or (out / _WORK).is_dir()
        or all(path.name == _LOCK for path in out.iterdir())
    )


def _remove(out: Path) -> None:
    """Remove what a preparation writes, the manifest first; anything else in ``out`` stays."""
    for name in (MANIFEST, *_FILES, "tokenizer", *SPLITS, _WORK):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _reuse(out: Path, config: PrepareConfig, state: dict[str, Any]) -> PreparedData:
    data = PreparedData.open(out)
    try:
        before = PrepareConfig.load(out / "config.yaml")
    except ChronomaskError as error:
        raise DataError(f"{error}; use --force to prepare {out} again") from None
    changes = diff(before.shaped(), config.shaped())
    if changes:
        listing = "; ".join(
            f"{key} is {was!r} there, {now!r} here" for key, (was, now) in changes.items()
        )
        raise UsageError(
            f"{out} was prepared with another config: {listing}. Use --force to prepare it again, "
            "or another --out"
        )
    if data.statistics.get("sources") != state["sources"]:
        raise UsageError(
            f"the sources have changed since {out} was prepared; use --force to prepare it again, "
            "or another --out"
        )
    return data
