"""Retrieval without training: documents by the angle between their vector and the query's.

Files are those of BEIR (Thakur et al., NeurIPS 2021): ``corpus.jsonl`` (``_id``, ``title``, ``text``),
``queries.jsonl`` (``_id``, ``text``) and ``qrels/test.tsv`` (query-id, corpus-id, score, below a header). The
search is exact. The measures are trec_eval's, as BEIR has them from pytrec_eval: nDCG@10 with the judged
score itself as the gain (linear, not 2^score − 1), and recall@100.

Documents are read, turned into vectors and scored :data:`BLOCK` at a time. What is held beside such a block
are the queries' vectors and their best 100, and the ids of all documents.
"""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError, shown
from chronomask.evaluate.batches import encode
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Task, folder_of, json_lines, one_file, texts_in
from chronomask.evaluate.vectors import Pooling, check_encoder, unit_vectors
from chronomask.progress import Progress
from chronomask.runs.result import TaskResult
from chronomask.storage import files_sha256
from chronomask.text_files import check_text, read_lines

__all__ = [
    "BLOCK",
    "Collection",
    "Retrieval",
    "RetrievalTask",
    "merge_best",
    "ndcg",
    "read_collection",
    "recall",
]

BLOCK = 4096
"""Documents held at a time."""
_DEPTH = 100
"""Documents that are kept for each query."""
_CUT = 10
"""Documents that nDCG looks at."""
_HIGHEST = 1_000_000
"""Score that a judgement may have: collections have a few grades."""


class Retrieval(Pooling):
    """Which collection, and how texts become vectors."""

    dataset: str | None = None
    """its folder in DATA/retrieval; none: DATA/retrieval or DATA itself, or the only folder there"""
    part: Literal["test", "dev", "train"] = "test"
    """the judgements: qrels/PART.tsv"""


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries that have judgements, and these; documents stay in their file."""

    corpus: Path
    queries: dict[str, str]
    """id → text, in file order"""
    judged: dict[str, dict[str, int]]
    """query → document → how relevant it is; of the queries above"""
    num_documents: int
    left_out: dict[str, int]


class RetrievalTask(Task[Retrieval]):
    """nDCG@10 and recall@100, means over the queries that have judgements."""

    name = "retrieval"
    family = "retrieval"
    draws = False
    outside_recipe = ("batch_tokens", "dataset")

    def data_sha256(self, task_data: Path) -> str:
        """Of corpus, queries and judgements."""
        return files_sha256(collection_files(task_data, self.config))

    def check(self, model: Subject, task_data: Path) -> None:
        """Read all three files; raises UsageError or DataError."""
        read_collection(*collection_files(task_data, self.config), self.config.limit)
        check_encoder(model, self.config)

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Search the corpus for every query that has judgements."""
        started = time.monotonic()
        files = collection_files(task_data, self.config)
        found = read_collection(*files, self.config.limit)
        best, unranked, left_out = self._search(model, found, progress)
        gains = [[found.judged[query].get(name, 0) for _, name in best[query]] for query in best]
        ideal = [list(found.judged[query].values()) for query in best]
        scores = {
            "ndcg_at_10": np.array([ndcg(*pair) for pair in zip(gains, ideal, strict=True)]),
            "recall_at_100": np.array([recall(*pair) for pair in zip(gains, ideal, strict=True)]),
        }
        for values in scores.values():
            values[unranked] = np.nan
        return self.result(
            model,
            seed,
            started,
            metrics={name: float(values.mean()) for name, values in scores.items()},
            primary="ndcg_at_10",
            num_examples={"queries": len(found.queries), "documents": found.num_documents},
            data_sha256=files_sha256(files),
            examples=scores,
            left_out=found.left_out | left_out,
        )

    def _search(
        self, model: Subject, found: Collection, progress: bool
    ) -> tuple[dict[str, list[tuple[float, str]]], NDArray[np.bool_], dict[str, int]]:
        """Query → its best documents as (cosine, id), the best first; which queries have a cosine that is NaN
        and so no order of the documents, [queries]; and what was cut of the texts.
        """
        from chronomask.model.device import choose_device

        longest = min(self.config.max_length, model.max_length)
        encoder = model.open_as("AutoModel", choose_device(self.config.device)).eval()
        total = len(found.queries) + found.num_documents
        cut: Counter[str] = Counter()
        with Progress(self.name, total, "texts", shown=progress) as shown:

            def vectors_of(kind: str, texts: Sequence[str]) -> NDArray[np.float32]:
                encoded = encode(model.tokenizer, texts, None, longest)
                cut.update({f"{kind} {why}": count for why, count in encoded.left_out.items()})
                return unit_vectors(encoder, encoded, self.config, shown)

            asked = vectors_of("query", list(found.queries.values()))
            best: dict[str, list[tuple[float, str]]] = {query: [] for query in found.queries}
            unranked = np.zeros(len(best), bool)
            stream = documents(found.corpus)
            while block := list(islice(stream, BLOCK)):
                names = [name for name, _ in block]
                scores = asked @ vectors_of("document", [text for _, text in block]).T
                unranked |= np.isnan(scores).any(1)
                for query, row in zip(best, scores, strict=True):
                    best[query] = merge_best(best[query], row, names, query, _DEPTH)
        return best, unranked, dict(cut)


def merge_best(
    best: list[tuple[float, str]],
    scores: NDArray[np.float32],
    names: Sequence[str],
    query: str,
    depth: int,
) -> list[tuple[float, str]]:
    """The ``depth`` best (score, id) of those found before and of more documents, the best first.

    Of equal scores the id that sorts last comes first, as in trec_eval. A document whose id is that of the
    query is left out, as in BEIR.
    """
    near = np.flatnonzero(scores >= (best[-1][0] if len(best) == depth else -np.inf))
    if near.size > depth + 1:
        floor = np.partition(scores[near], -depth - 1)[-depth - 1]  # one of them may be the query
        near = near[scores[near] >= floor]
    more = [(float(scores[k]), names[k]) for k in near.tolist() if names[k] != query]
    return sorted([*best, *more], reverse=True)[:depth]


def ndcg(gains: Sequence[int], judged: Sequence[int]) -> float:
    """trec_eval's ``ndcg_cut_10``: Σ gain / log₂(rank + 1) over the first ten, over that of the best order.

    ``gains``: the judged scores of the documents found, in their order, 0 for those without; ``judged``:
    all judged scores of the query. 0 where none is above 0.
    """
    best = _discount(sorted(judged, reverse=True))
    return _discount(gains) / best if best else 0.0


def recall(gains: Sequence[int], judged: Sequence[int]) -> float:
    """Share of the documents judged above 0 that were found; 0 where there is none."""
    relevant = sum(score > 0 for score in judged)
    return sum(gain > 0 for gain in gains) / relevant if relevant else 0.0


def _discount(gains: Sequence[int]) -> float:
    return sum(max(0, g) / math.log2(rank + 1) for rank, g in enumerate(gains[:_CUT], 1))


def collection_files(task_data: Path, config: Retrieval) -> tuple[Path, Path, Path]:
    """Corpus, queries and judgements, maybe compressed; raises UsageError where it is not clear which."""
    place = folder_of(task_data, "retrieval")
    if config.dataset is not None:
        place = place / config.dataset
    elif not [*place.glob("corpus.jsonl*")]:
        inner = [path.parent for path in sorted(place.glob("*/corpus.jsonl*"))]
        names = sorted({path.name for path in inner})
        if len(names) > 1:
            raise UsageError(
                f"{place} holds several collections ({', '.join(names)}): choose one, such as "
                f"--set {shlex.quote(f'retrieval.dataset={names[0]}')}"
            )
        place = inner[0] if inner else place
    judgements = place / "qrels" / f"{config.part}.tsv"
    return (
        one_file(place / "corpus.jsonl"),
        one_file(place / "queries.jsonl"),
        one_file(judgements),
    )


def documents(corpus: Path) -> Iterator[tuple[str, str]]:
    """Id and text of each document, its title before its text; raises DataError naming the line."""
    for where, values in json_lines(read_lines(corpus), corpus):
        (text,) = texts_in(values, ("text",), where)
        title = values.get("title") or ""
        if not isinstance(title, str):
            raise DataError(f"{where}: title is {shown(title)}; it should be text")
        yield _id(values, where), f"{check_text(title, where)} {text}".strip()


def read_collection(
    corpus: Path, queries: Path, judgements: Path, limit: int | None = None
) -> Collection:
    """The queries with judgements, at most the first ``limit``; raises DataError naming the line.

    What is left out is counted: queries without judgements, judgements of queries and of documents that
    are not there (documents that are missing still count in the best order), documents without text.
    """
    judged = _read_judgements(judgements)
    texts: dict[str, str] = {}
    for where, values in json_lines(read_lines(queries), queries):
        name = _id(values, where)
        if name in texts:
            raise DataError(f"{where}: the id {shown(name)} occurs twice")
        (texts[name],) = texts_in(values, ("text",), where)
    there: set[str] = set()
    empty = 0
    for number, (name, text) in enumerate(documents(corpus), 1):
        if name in there:
            raise DataError(f"{corpus}, document {number}: the id {shown(name)} occurs twice")
        there.add(name)
        empty += not text
    if not there:
        raise DataError(f"{corpus} holds no document")
    asked = {name: text for name, text in texts.items() if name in judged}
    if not asked:
        raise DataError(f"{judgements} judges no query of {queries}: they have no ids in common")
    missing = sum(name not in there for name in asked for name in judged[name])
    chosen = dict(list(asked.items())[:limit])
    return Collection(
        corpus,
        chosen,
        {name: judged[name] for name in chosen},
        len(there),
        {
            "queries without judgements": len(texts) - len(asked),
            "judged queries that are not there": len(judged.keys() - texts.keys()),
            "judged documents that are not there": missing,
            "documents without text": empty,
        },
    )


def _read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Query → document → score; raises DataError naming the line. A header has a word in place of a score."""
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 3:
            raise DataError(
                f"{path}, line {number}: {len(columns)} columns; query-id, corpus-id and score are expected, "
                "tab-separated"
            )
        query, document, text = columns
        try:
            score = int(text)
        except ValueError:
            if number == 1 and text.strip().isalpha():
                continue
            raise DataError(
                f"{path}, line {number}: score {shown(text)} is not a whole number"
            ) from None
        if abs(score) > _HIGHEST:
            raise DataError(
                f"{path}, line {number}: score {shown(text)} is not between −{_HIGHEST:,} and {_HIGHEST:,}"
            )
        if found.setdefault(query, {}).setdefault(document, score) != score:
            raise DataError(
                f"{path}, line {number}: {shown(document)} is judged twice for {shown(query)}"
            )
    if not found:
        raise DataError(f"{path} holds no judgement")
    return found


def _id(values: Mapping[str, Any], where: str) -> str:
    name = values.get("_id")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DataError(f"{where} lacks _id, which is text or a whole number")
    return check_text(str(name), where)
