"""Similarity and retrieval without training: vectors, ranks and measures against plain versions."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModel

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.tasks import retrieval
from chronomask.evaluate.tasks.retrieval import (
    Retrieval,
    RetrievalTask,
    collection_files,
    merge_best,
    ndcg,
    read_collection,
    recall,
)
from chronomask.evaluate.tasks.sts import SimilarityTask
from chronomask.evaluate.vectors import Pooling
from tests.support.official_files import write_task
from tests.support.task_files import write_collection

WORDS = ["the", "a", "film", "was", "story", "and", "actor", "very", "warm", "cold", "kind", "rude"]


def vectors(subject: Subject, texts: list[str]) -> list[torch.Tensor]:
    """Of each text by itself, nothing padded: the mean of the last layer, scaled to length 1."""
    encoder = AutoModel.from_pretrained(subject.path).eval()
    found = []
    for text in texts:
        ids = torch.tensor([subject.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = encoder(ids, output_hidden_states=True).hidden_states[-1][0].double()
        found.append(states.mean(0) / states.mean(0).norm())
    return found


def test_similarity_is_the_correlation_of_cosines_of_mean_vectors(
    subject: Subject, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, 2 + k % 5)) for k in range(16)]
    rows = [(sentences[k], sentences[k + 8], f"{k * 0.6:.3f}") for k in range(8)]
    write_task(tmp_path / "glue", "STS-B", rows, rows)
    (tmp_path / "glue" / "STS-B" / "train.tsv").unlink()  # nothing is trained
    task = SimilarityTask(Pooling(batch_tokens=20))
    task.check(subject, tmp_path)
    found = task.run(subject, tmp_path, 0, False)
    each = vectors(subject, sentences)
    cosines = [float(a @ b) for a, b in zip(each[:8], each[8:], strict=True)]
    gold = [float(score) for *_, score in rows]
    np.testing.assert_allclose(found.examples["prediction"], cosines, atol=2e-6)
    assert found.metrics["spearman"] == pytest.approx(stats.spearmanr(cosines, gold)[0])
    assert found.metrics["pearson"] == pytest.approx(stats.pearsonr(cosines, gold)[0], abs=1e-5)
    assert not found.left_out
    alone = SimilarityTask(Pooling(batch_tokens=1)).run(subject, tmp_path, 0, False)
    np.testing.assert_allclose(alone.examples["prediction"], cosines, atol=2e-6)
    cut = SimilarityTask(Pooling(max_length=8)).run(subject, tmp_path, 0, False)
    long = sum(len(subject.tokenizer(text)["input_ids"]) > 8 for text in sentences)
    assert cut.left_out.get("examples cut at 8 tokens", 0) == long


def plain_measures(ranked: list[str], judged: dict[str, int]) -> tuple[float, float]:
    """trec_eval's ndcg_cut_10 and recall_100, from their definitions."""
    gain = sum(judged.get(name, 0) / math.log2(2 + k) for k, name in enumerate(ranked[:10]))
    ideal = sorted(judged.values(), reverse=True)[:10]
    best = sum(score / math.log2(2 + k) for k, score in enumerate(ideal))
    relevant = {name for name, score in judged.items() if score > 0}
    found = relevant & set(ranked[:100])
    return (gain / best if best else 0.0), (len(found) / len(relevant) if relevant else 0.0)


@pytest.mark.parametrize(
    ("gains", "judged", "expected"),
    [
        ([0, 2, 1], [2, 1, 1], (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3) + 1 / 2)),
        ([3], [3], 1.0),
        ([], [1], 0.0),
        ([0, 0], [0, 0], 0.0),
        ([-1, 1], [-1, 1], 1 / math.log2(3)),
        ([0] * 10 + [1], [1], 0.0),
    ],
)
def test_ndcg_by_hand(gains: list[int], judged: list[int], expected: float) -> None:
    assert ndcg(gains, judged) == pytest.approx(expected)


def test_recall_by_hand() -> None:
    assert recall([0, 2, 1, 0], [2, 1, 1, 0]) == pytest.approx(2 / 3)
    assert recall([0], [0]) == 0.0


@pytest.mark.parametrize("block", [1, 3, 50])
def test_the_best_are_those_of_one_sort_whatever_the_blocks(block: int) -> None:
    rng = np.random.default_rng(1)
    names = [f"d{k}" for k in rng.permutation(50)]
    scores = rng.integers(0, 6, 50).astype(np.float32)  # many ties
    best: list[tuple[float, str]] = []
    for begin in range(0, 50, block):
        part = slice(begin, begin + block)
        best = merge_best(best, scores[part], names[part], "d7", 10)
    everything = sorted(zip(scores.tolist(), names, strict=True), reverse=True)
    assert best == [pair for pair in everything if pair[1] != "d7"][:10]


def test_the_query_itself_takes_the_place_of_no_document() -> None:
    scores = np.array([0.75, 0.5, 0.25, 0.125], np.float32)
    found = merge_best([], scores, ["asked", "a", "b", "c"], "asked", 2)
    assert found == [(0.5, "a"), (0.25, "b")]


def test_retrieval_is_that_of_all_cosines(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, queries, judged = write_collection(tmp_path / "retrieval", WORDS)
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    task = RetrievalTask()
    task.check(subject, tmp_path)
    found = task.run(subject, tmp_path, 0, False)
    rows = dict(zip(corpus, vectors(subject, [*corpus.values()]), strict=True))
    asked = dict(zip(queries, vectors(subject, [*queries.values()]), strict=True))
    expected = []
    for query, of_query in judged.items():
        scores = {name: float(asked[query] @ row) for name, row in rows.items() if name != query}
        ranked = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
        expected.append(plain_measures(ranked, of_query))
    measured = np.stack([found.examples["ndcg_at_10"], found.examples["recall_at_100"]], 1)
    np.testing.assert_allclose(measured, expected, atol=1e-9)
    assert found.metrics["ndcg_at_10"] == pytest.approx(np.mean(expected, 0)[0])
    assert found.num_examples == {"queries": len(judged), "documents": len(corpus)}
    assert found.left_out == {
        "queries without judgements": 1, "judged queries that are not there": 1,
        "judged documents that are not there": 1, "documents without text": 1,
    }  # fmt: skip
    cut = RetrievalTask(Retrieval(max_length=8)).run(subject, tmp_path, 0, False)
    assert cut.left_out["document examples cut at 8 tokens"] > 0
    one = RetrievalTask(Retrieval(limit=1)).run(subject, tmp_path, 0, False)
    assert one.num_examples == {"queries": 1, "documents": len(corpus)}
    assert one.examples["ndcg_at_10"] == pytest.approx(found.examples["ndcg_at_10"][:1])


def test_collections_are_found_and_read_compressed(tmp_path: Path) -> None:
    place = tmp_path / "retrieval"
    write_collection(place / "scifact", WORDS)
    plain = read_collection(*collection_files(tmp_path, Retrieval()))
    (place / "scifact" / "corpus.jsonl.gz").write_bytes(
        gzip.compress((place / "scifact" / "corpus.jsonl").read_bytes())
    )
    with pytest.raises(UsageError, match=r"corpus.jsonl and corpus.jsonl.gz: leave only one"):
        collection_files(tmp_path, Retrieval())
    (place / "scifact" / "corpus.jsonl").unlink()
    packed = read_collection(*collection_files(tmp_path, Retrieval()))
    assert (packed.queries, packed.judged) == (plain.queries, plain.judged)
    write_collection(place / "other", WORDS)
    with pytest.raises(UsageError, match=r"several collections \(other, scifact\).*dataset=other"):
        collection_files(tmp_path, Retrieval())
    assert collection_files(tmp_path, Retrieval(dataset="other"))[0].parent.name == "other"
    with pytest.raises(UsageError, match=r"dev.tsv does not exist \(nor with .gz"):
        collection_files(tmp_path, Retrieval(dataset="other", part="dev"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "1"}', r"line 1 lacks text"),
        ("corpus.jsonl", '{"_id": "1", "text": "a", "title": 5}', "title is 5"),
        ("corpus.jsonl", '{"text": "a"}', "lacks _id"),
        ("corpus.jsonl", '{"_id": true, "text": "a"}', "lacks _id"),
        ("corpus.jsonl", '{"_id": 1, "text": "a"}\n\n{"_id": "1", "text": ""}', "'1' occurs twice"),
        ("corpus.jsonl", "", "holds no document"),
        ("corpus.jsonl", "[1]", "line 1 is not a JSON object"),
        ("corpus.jsonl", '{"_id": "1", "text": "\\ud800"}', "half of a character"),
        ("queries.jsonl", '{"_id": "q0"', "line 1 is not JSON"),
        ("queries.jsonl", '{"_id": "x", "text": "a"}', "judges no query"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\t1\tmuch", "line 2: score 'much'"),
        ("qrels/test.tsv", "q0 1 1", "line 1: 1 columns"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "holds no judgement"),
        (
            "qrels/test.tsv",
            f"q0\t1\t1\nq0\t2\t{10**400}",
            r"line 2: score '10+ … 0+' is not between",
        ),
        ("qrels/test.tsv", "q0\t1\t1\nq0\t1\t0", "line 2: '1' is judged twice"),
    ],
)
def test_files_of_another_shape_are_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    write_collection(tmp_path / "retrieval", WORDS)
    (tmp_path / "retrieval" / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_collection(*collection_files(tmp_path, Retrieval()))


def test_a_limit_takes_queries_and_never_documents(tmp_path: Path) -> None:
    corpus, _, judged = write_collection(tmp_path, WORDS)
    found: Any = read_collection(*collection_files(tmp_path, Retrieval()), limit=2)
    assert list(found.queries) == list(judged)[:2]
    assert found.num_documents == len(corpus)
    assert json.dumps(found.left_out)
