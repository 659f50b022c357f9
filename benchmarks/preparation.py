"""Words per second from text to packed rows, beside what people use today, one thread a process.

    python -m benchmarks.preparation [--json] [--text FILE] [--megabytes N] [--turns N]
        [--workers N] [--pipeline NAME] [--only {tagged,untagged,hf_map,size,scaling,memory} ...]

The text is the beginning of ``--text`` (any source file), or made of prose of the installed packages.
Times are CPU seconds of this process and its children; what is slow to repeat is measured in turns and
its median given. Nothing is known at the start of a turn: our tables of chunks are empty.

- ``words_per_cpu_second``: tokenise, tag with the bundled English tagger, align and pack.
- ``untagged_share_of_tokenizer``: the same without tags, in words per CPU second, over the tokenizer's
  own ``encode_batch`` alone.
- ``vs_spacy_per_document``: CPU time per token of the published way over ours: decode every row, run the
  spaCy pipeline on it, find every token's word by its characters. Theirs is timed on the first
  300,000 characters, as no row's time depends on the others; both have the bundled pipeline.
- ``vs_spacy_pipeline``: the same with ``--pipeline`` (a folder or an installed name), run whole.
- ``vs_hf_map``: one JSONL file to packed rows on disk, without tags and with the same saved tokenizer:
  wall time of ``datasets`` (``load_dataset``, ``map`` with tokenising, ``map`` with ``group_texts``, as in
  transformers' run_mlm.py, its cache written) over that of ``prepare`` (reading, splitting, rows, hashes,
  its files synced to disk); ``--workers`` processes each; ``vs_hf_map_cpu``: the same of CPU time.
- ``bytes_per_token`` on disk, of rows of 512 tokens with classes.
- ``scaling_2_workers``: wall time of annotating by one process over that by two, both started for it;
  a process takes about two seconds to start and meets its own chunks for the first time, so more text
  scales better.
- ``worker_peak_mib``: most memory of one worker that annotates it all, as Linux counts it (none
  elsewhere); ``worker_peak_mib_half``: of one that annotates the first half of the parts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from benchmarks.record import as_json
from chronomask.data.folder import PreparedData
from chronomask.data.summary import summarise
from chronomask.prepare.config import EnglishTagger, PrepareConfig
from chronomask.prepare.encoding import load_backend
from chronomask.prepare.executors import Stage, run_stage
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.read.gather import gather
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
from chronomask.prepare.rows.annotate import (
    ANNOTATE,
    BATCH_CHARACTERS,
    Annotator,
    PartJob,
    annotate_part,
)
from chronomask.prepare.rows.pack import Pieces, Specials, concatenate
from chronomask.prepare.tokenizer import SavedTokenizer, open_saved
from chronomask.prepare.words.tagger import WordFinder
from chronomask.prepare.words.unicode import UnicodeWords
from chronomask.progress import Progress

if TYPE_CHECKING:
    from spacy.language import Language
    from tokenizers import Tokenizer

LENGTH, VOCAB_SIZE = 512, 8192
PART_CHARACTERS = 1_000_000
SPACY_CHARACTERS = 300_000
"""Text that the published way is timed on; it is slow."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement starts from."""

    folder: Path
    texts: list[str]
    data: PreparedData
    tokenizer: SavedTokenizer
    backend: Tokenizer


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose."""

    workers: int
    turns: int
    pipeline: str | None


Figures = dict[str, float | None]


def some_texts(source: Any, max_characters: int) -> list[str]:
    """Documents from the beginning of a source."""
    config = PrepareConfig.parse({"sources": [source]})
    fields, skipped = config.fields(), Skipped()
    documents = (
        document.text
        for found in find_sources(config.sources, fields, skipped)
        for document in found.documents(fields, skipped)
    )
    return beginning(documents, max_characters)


def beginning(texts: Iterable[str], max_characters: int) -> list[str]:
    """The first documents, up to about so many characters."""
    chosen, held = [], 0
    for text in texts:
        if held >= max_characters:
            break
        chosen.append(text)
        held += len(text)
    return chosen


def config_of(folder: Path, **values: Any) -> PrepareConfig:
    """Rows of 512 tokens of the benchmark's text, tagged unless ``values`` say otherwise."""
    base = {
        "sources": [str(folder / "text.jsonl")],
        "tokenizer": {"kind": "wordpiece", "vocab_size": VOCAB_SIZE},
        "row_length": LENGTH,
        "held_out": 0.0,
        "workers": 1,
    }
    return PrepareConfig.parse(base | values)


def set_up(folder: Path, texts: list[str]) -> Bench:
    """Write the text, train a tokenizer on it and prepare it once, tagged."""
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (folder / "text.jsonl").write_text(lines, encoding="utf-8")
    data = prepare(config_of(folder), folder / "data", progress=False)
    return Bench(
        folder, texts, data, open_saved(data.tokenizer_path), load_backend(data.tokenizer_path)
    )


def cpu_now() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = cpu_now(), time.perf_counter()
    call()
    return cpu_now() - cpu, time.perf_counter() - wall


def in_turns(turns: int, *calls: Callable[[], object]) -> list[tuple[float, float]]:
    """Median CPU and wall seconds of each of several calls made in turn."""
    found = [[seconds(call) for call in calls] for _ in range(turns)]
    return [
        (median(cpu for cpu, _ in of_call), median(wall for _, wall in of_call))
        for of_call in zip(*found, strict=True)
    ]


def rows_in_memory(bench: Bench, finder: WordFinder, texts: Sequence[str]) -> int:
    """Tokenise, tag, align and pack; returns the number of words."""
    words = 0
    specials = Specials(bench.tokenizer.cls_id, bench.tokenizer.sep_id, bench.tokenizer.pad_id)

    def pieces() -> Iterator[Pieces]:
        nonlocal words
        backend = load_backend(bench.data.tokenizer_path)
        for batch in Annotator(backend, bench.tokenizer.special_ids, finder).annotate(texts):
            words += batch.num_words
            yield Pieces(batch.ids, batch.annotation, batch.lengths)

    for _ in concatenate(pieces(), LENGTH, specials):
        pass
    return words


def tokenizer_alone(bench: Bench) -> None:
    """The bare call, on batches as large as ours."""
    batch: list[str] = []
    held = 0
    for text in bench.texts:
        batch.append(text)
        held += len(text)
        if held >= BATCH_CHARACTERS:
            bench.backend.encode_batch(batch, add_special_tokens=False)
            batch, held = [], 0
    if batch:
        bench.backend.encode_batch(batch, add_special_tokens=False)


def hf_tokenizer(bench: Bench) -> Any:
    """The tokenizer as transformers opens it."""
    # Imported here: worker processes import this file, and must not pay for torch.
    from chronomask.model.open import open_tokenizer

    tokenizer: Any = open_tokenizer(bench.data.tokenizer_path)
    tokenizer.model_max_length = 1 << 30  # documents are cut later, no warning is due
    return tokenizer


def spacy_per_document(
    bench: Bench, tokenizer: Any, pipeline: Language, texts: Sequence[str]
) -> int:
    """The published way: tags for every token of every row, one row at a time; returns the tokens."""
    ids = list(
        chain.from_iterable(
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
        )
    )
    tagged = 0
    for start in range(0, len(ids), LENGTH):
        text = tokenizer.decode(ids[start : start + LENGTH])
        document = pipeline(text)
        tag_at = [""] * len(text)
        for word in document:
            for character in range(word.idx, word.idx + len(word)):
                tag_at[character] = word.pos_
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        tags = [tag_at[a] if a < b else "" for a, b in encoded["offset_mapping"]]
        tagged += len(tags)
    return tagged


def annotating(bench: Bench, workers: int, share: float = 1.0) -> None:
    """Annotate a share of the parts with that many processes started for it."""
    work = bench.folder / f"work-{workers}"
    for done in (*work.glob("tokens-*"), *work.glob("annotate-*")):
        done.unlink()
    config = config_of(bench.folder)
    if not work.is_dir():
        work.mkdir()
        fields, skipped = config.fields(), Skipped()
        gather(
            work,
            find_sources(config.sources, fields, skipped),
            fields,
            skipped,
            Progress("", None, shown=False),
            min_characters=config.min_characters,
            part_characters=PART_CHARACTERS,
            held_out=0.0,
        )
    job = PartJob(
        run="benchmark",
        tokenizer=str(bench.tokenizer.folder),
        tagger=config.tagger,
        class_names=config.tagger.classes(),
        out=str(bench.data.path),
        special_ids=bench.tokenizer.special_ids,
        vocab_size=bench.tokenizer.vocab_size,
        held_out_below=0.0,
    )
    num_parts = round(share * len(list(work.glob("text-*"))))
    stage = Stage(ANNOTATE, work, partial(annotate_part, job))
    of_stage = (stage, range(num_parts), workers, config.executor, nothing)
    if workers > 1:
        run_stage(*of_stage)
    else:  # one process as a worker is, not this one, which has everything loaded already
        process = get_context("spawn").Process(target=run_stage, args=of_stage)
        process.start()
        process.join()
        assert process.exitcode == 0


def nothing(number: int) -> None:
    """What is told of a part that is done."""


def peak_memory_of_children(call: Callable[[], object]) -> float | None:
    """Most MiB that one process started during a call held, looked up 20 times a second.

    ``ru_maxrss`` would not do: a child's begins at what its parent held.
    """
    if not Path("/proc/self/task").is_dir():
        return None
    peak, done = 0, Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            with suppress(OSError):  # a thread or a process has ended meanwhile
                for children in Path("/proc/self/task").glob("*/children"):
                    for child in children.read_text().split():
                        status = Path(f"/proc/{child}/status").read_text()
                        peak = max([peak, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status))])

    watcher = Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return round(peak / 1024)


def ours_on_disk(bench: Bench, workers: int) -> None:
    """Text file to packed rows on disk, without tags."""
    out = bench.folder / "untagged"
    shutil.rmtree(out, ignore_errors=True)
    given = {"kind": "folder", "path": str(bench.data.tokenizer_path)}
    config = config_of(bench.folder, tokenizer=given, tagger={"kind": "none"}, workers=workers)
    prepare(config, out, progress=False)


def hf_map(bench: Bench, workers: int) -> None:
    """The same with ``datasets``: tokenise, then concatenate and cut (transformers' run_mlm.py)."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = hf_tokenizer(bench)
    cache = bench.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    text = datasets.load_dataset(
        "json", data_files=str(bench.folder / "text.jsonl"), cache_dir=str(cache), split="train"
    )

    def tokenise(examples: dict[str, list[str]]) -> Any:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain.from_iterable(examples[key])) for key in examples}
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        return {
            key: [values[k : k + LENGTH] for k in range(0, total, LENGTH)]
            for key, values in joined.items()
        }

    processes = workers if workers > 1 else None
    tokens = text.map(tokenise, batched=True, remove_columns=["text"], num_proc=processes)
    tokens.map(group_texts, batched=True, num_proc=processes)


def untagged(bench: Bench, options: Options) -> Figures:
    """Rows without tags beside the tokenizer's own call."""
    words = rows_in_memory(bench, UnicodeWords(), bench.texts)  # compiled code is loaded once
    (ours, _), (alone, _) = in_turns(
        options.turns,
        lambda: rows_in_memory(bench, UnicodeWords(), bench.texts),
        lambda: tokenizer_alone(bench),
    )
    print(f"  {words:,} words: tokenizer alone {alone:.2f} s, untagged rows {ours:.2f} s of CPU")
    return {"untagged_share_of_tokenizer": round(alone / ours, 3)}


def tagged(bench: Bench, options: Options) -> Figures:
    """Rows with tags beside the published way."""
    from chronomask.prepare.words.english.accuracy import load_tagger as load_pipeline

    english = EnglishTagger().open()
    few = beginning(bench.texts, SPACY_CHARACTERS)
    tokenizer, bundled = hf_tokenizer(bench), load_pipeline()
    words = rows_in_memory(bench, english, bench.texts)
    tokens = tokens_of(bench, few)
    (cpu, _), (theirs, _) = in_turns(
        options.turns,
        lambda: rows_in_memory(bench, english, bench.texts),
        lambda: spacy_per_document(bench, tokenizer, bundled, few),
    )
    ours = cpu / tokens_of(bench, bench.texts)
    print(f"  {words:,} words: tagged rows {cpu:.2f} s of CPU, {1e6 * ours:.2f} µs a token")
    print(f"  the published way: {1e6 * theirs / tokens:.2f} µs a token")
    figures: Figures = {
        "words_per_cpu_second": round(words / cpu),
        "vs_spacy_per_document": round(theirs / tokens / ours, 2),
    }
    if options.pipeline:
        import spacy

        whole = spacy.load(options.pipeline)
        theirs, _ = seconds(lambda: spacy_per_document(bench, tokenizer, whole, few))
        print(f"  the published way, {whole.meta['name']}: {1e6 * theirs / tokens:.2f} µs a token")
        figures["vs_spacy_pipeline"] = round(theirs / tokens / ours, 2)
    return figures


def vs_hf_map(bench: Bench, options: Options) -> Figures:
    """Time of ``datasets`` over ours; None without the package."""
    if find_spec("datasets") is None:
        print("vs_hf_map: skipped, the package `datasets` is not installed", file=sys.stderr)
        return {"vs_hf_map": None, "vs_hf_map_cpu": None}
    workers = options.workers
    theirs, ours = in_turns(
        options.turns, lambda: hf_map(bench, workers), lambda: ours_on_disk(bench, workers)
    )
    print(
        f"  text to rows on disk, untagged, {workers} process(es): datasets {theirs[1]:.2f} s "
        f"({theirs[0]:.2f} s of CPU), ours {ours[1]:.2f} s ({ours[0]:.2f} s of CPU)"
    )
    return {
        "vs_hf_map": round(theirs[1] / ours[1], 2),
        "vs_hf_map_cpu": round(theirs[0] / ours[0], 2),
    }


def size(bench: Bench, options: Options) -> Figures:
    """Bytes on disk."""
    rows = summarise(bench.data.split("train"), len(bench.data.class_names))
    return {"bytes_per_token": round(rows.bytes_per_token, 4)}


def scaling(bench: Bench, options: Options) -> Figures:
    """One process and two."""
    (_, one), (_, two) = in_turns(
        options.turns, lambda: annotating(bench, 1), lambda: annotating(bench, 2)
    )
    print(f"  annotating: one process {one:.2f} s, two {two:.2f} s")
    return {"scaling_2_workers": round(one / two, 2)}


def memory(bench: Bench, options: Options) -> Figures:
    """What one worker holds, after half the text and after all."""
    half = peak_memory_of_children(lambda: annotating(bench, 1, 0.5))
    whole = peak_memory_of_children(lambda: annotating(bench, 1))
    return {"worker_peak_mib_half": half, "worker_peak_mib": whole}


MEASUREMENTS: dict[str, Callable[[Bench, Options], Figures]] = {
    "tagged": tagged,
    "untagged": untagged,
    "hf_map": vs_hf_map,
    "size": size,
    "scaling": scaling,
    "memory": memory,
}


def tokens_of(bench: Bench, texts: Sequence[str]) -> int:
    """How many tokens texts are, special tokens left out."""
    return sum(len(e) for e in bench.backend.encode_batch(list(texts), add_special_tokens=False))


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--text", type=Path, help="source file, instead of the installed packages")
    parser.add_argument("--megabytes", type=float, default=20.0, help="how much text")
    parser.add_argument("--workers", type=int, default=1, help="processes beside datasets.map")
    parser.add_argument("--turns", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--pipeline", help="spaCy pipeline to run per row as well")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    chosen = parser.parse_args()
    characters = int(chosen.megabytes * 1e6)
    made_up = {"kind": "installed_packages", "max_bytes": characters}
    texts = some_texts(str(chosen.text) if chosen.text else made_up, characters)
    options = Options(chosen.workers, chosen.turns, chosen.pipeline)
    figures: Figures = {}
    print(f"{len(texts):,} documents, {sum(map(len, texts)):,} characters")
    with tempfile.TemporaryDirectory() as folder:
        bench = set_up(Path(folder), texts)
        for name in chosen.only:
            figures |= MEASUREMENTS[name](bench, options)
    for key, value in figures.items():
        print(f"{key:30}{'–' if value is None else format(value, ',.5g'):>12}")
    if chosen.json:
        print(as_json(figures))


if __name__ == "__main__":
    main()
