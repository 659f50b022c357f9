"""Small files in the official formats of GLUE and SQuAD."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GOOD = ["lovely", "bright", "warm", "kind"]
BAD = ["awful", "grey", "cold", "rude"]
FILL = ["the", "a", "film", "was", "story", "and", "actor", "very", "."]

MNLI_TRAIN = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "label1",
    "gold_label",
]
MNLI_DEV = [*MNLI_TRAIN[:11], "label2", "label3", "label4", "label5", "gold_label"]
HEADERS = {
    "SST-2": ["sentence", "label"],
    "MRPC": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "STS-B": [
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ],
    "QQP": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "QNLI": ["index", "question", "sentence", "label"],
    "RTE": ["index", "sentence1", "sentence2", "label"],
    "WNLI": ["index", "sentence1", "sentence2", "label"],
}
PLACES = {
    "CoLA": (3, 3, 1), "SST-2": (0, 0, 1), "MRPC": (3, 4, 0), "STS-B": (7, 8, 9), "QQP": (3, 4, 5),
    "QNLI": (1, 2, 3), "RTE": (1, 2, 3), "WNLI": (1, 2, 3),
}  # fmt: skip
"""columns of the first text, the second text and the label, counted from 0"""
LABELS = {
    "CoLA": ["0", "1"], "SST-2": ["0", "1"], "MRPC": ["0", "1"], "QQP": ["0", "1"], "WNLI": ["0", "1"],
    "QNLI": ["entailment", "not_entailment"], "RTE": ["entailment", "not_entailment"],
    "STS-B": ["0.000", "5.000"], "MNLI": ["entailment", "neutral", "contradiction"],
}  # fmt: skip


def sentence(number: int, positive: bool) -> str:
    """Told apart by one word; the rest differs from sentence to sentence."""
    words = [FILL[(number * 7 + k * 3) % len(FILL)] for k in range(3 + number % 5)]
    words.insert(number % 3, (GOOD if positive else BAD)[number // 2 % 4])
    return " ".join(words)


def table(path: Path, header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = "\ufeff" if path.parent.name == "MRPC" else ""
    path.write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")


def row(width: int, first: str, second: str, label: str, places: Sequence[int]) -> list[str]:
    cells = [f"x{k}" for k in range(width)]
    # Where one column is both, the first text stands in it.
    for place, value in zip(reversed(places), (label, second, first), strict=True):
        cells[place] = value
    return cells


def write_task(
    glue: Path, folder: str, train: Sequence[tuple[str, str, str]], dev: Sequence[tuple[str, ...]]
) -> None:
    """Rows (first text, second text, label) of a task with one dev set."""
    header = HEADERS.get(folder)
    width = len(header) if header else 4
    for split, rows in (("train", train), ("dev", dev)):
        cells = [row(width, *example, PLACES[folder]) for example in rows]
        table(glue / folder / f"{split}.tsv", header, cells)


def write_mnli(glue: Path, number: int = 12) -> None:
    """Three labels in turn; the dev sets hold them in other orders and sizes."""
    names = LABELS["MNLI"]
    for split, size, shift in (
        ("train", number, 0),
        ("dev_matched", 6, 1),
        ("dev_mismatched", 5, 2),
    ):
        header = MNLI_TRAIN if split == "train" else MNLI_DEV
        places = (8, 9, len(header) - 1)
        rows = [
            row(len(header), f"{split} premise {k}", f"claim {k}", names[(k + shift) % 3], places)
            for k in range(size)
        ]
        table(glue / "MNLI" / f"{split}.tsv", header, rows)


def write_glue(glue: Path, number: int = 12) -> None:
    """All nine tasks and the diagnostic pairs."""
    for folder, labels in LABELS.items():
        if folder == "MNLI":
            continue
        rows = [
            (sentence(k, k % 2 > 0), sentence(k + 1, k % 2 > 0), labels[k % 2])
            for k in range(number)
        ]
        write_task(glue, folder, rows, rows[:5])
    write_mnli(glue, number)
    pairs = [[str(k), f"premise {k}", f"claim {k}"] for k in range(4)]
    table(glue / "AX" / "diagnostic.tsv", ["index", "sentence1", "sentence2"], pairs)


def squad_values(articles: Sequence[Sequence[tuple[str, Sequence[tuple[str, str]]]]]) -> Any:
    """Articles of (context, [(question, answer)]); an answer is taken where it first stands."""
    data = []
    for a, paragraphs in enumerate(articles):
        written = []
        for p, (context, asked) in enumerate(paragraphs):
            qas = [
                {
                    "id": f"{a}-{p}-{q}",
                    "question": question,
                    "answers": [{"text": answer, "answer_start": context.index(answer)}],
                }
                for q, (question, answer) in enumerate(asked)
            ]
            written.append({"context": context, "qas": qas})
        data.append({"title": f"article {a}", "paragraphs": written})
    return {"version": "1.1", "data": data}


def write_squad(folder: Path, train: Any, dev: Any, version: str = "1.1") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, values in (("train", train), ("dev", dev)):
        text = json.dumps(values, ensure_ascii=False)
        (folder / f"{split}-v{version}.json").write_text(text, encoding="utf-8")
