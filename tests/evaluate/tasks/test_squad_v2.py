"""Questions without answers: files, the null score, and the measures of the official script of v2.0."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.spans import Question, Questions
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.tasks.squad import (
    Answer,
    SquadConfig,
    SquadV2Task,
    normalise,
    read_questions,
)
from tests.support.official_files import squad_values, write_squad

CONTEXT = "the film was warm and the actor was cold"


def values() -> Any:
    """Four questions on one context; the last two have no answer."""
    asked = [("what was warm?", "film"), ("who was cold?", "actor")]
    made = squad_values([[(CONTEXT, asked)]])
    questions = made["data"][0]["paragraphs"][0]["qas"]
    for question in questions:
        question["is_impossible"] = False
    for k, text in enumerate(("who was rude?", "what was grey?")):
        plausible = [{"text": "actor", "answer_start": CONTEXT.index("actor")}]
        questions.append({
            "id": f"no{k}", "question": text, "answers": [], "plausible_answers": plausible,
            "is_impossible": True,
        })  # fmt: skip
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_squad(tmp_path / "squad", values(), values(), version="2.0")
    return tmp_path


def official(
    asked: list[tuple[tuple[str, ...], str, float]],
) -> dict[str, float]:
    """Measures of (gold answers, text of the span, lead of no answer), after evaluate-v2.0's definitions."""

    def f1(gold: str, text: str) -> float:
        a, b = normalise(gold).split(), normalise(text).split()
        if not a or not b:
            return float(a == b)
        same = sum((Counter(a) & Counter(b)).values())
        return 0.0 if not same else 2 * same / (len(a) + len(b))

    def raw(gold: tuple[str, ...], text: str) -> tuple[float, float]:
        left = [answer for answer in gold if normalise(answer)] or [""]
        exact = max(float(normalise(answer) == normalise(text)) for answer in left)
        return exact, max(f1(answer, text) for answer in left)

    out: dict[str, float] = {}
    at_zero = np.array([raw(gold, text if lead <= 0 else "") for gold, text, lead in asked]) * 100
    has = np.array([bool(gold) for gold, _, _ in asked])
    for column, name in enumerate(("exact_match", "f1")):
        out[name] = at_zero[:, column].mean()
        for kind, those in (("HasAns", has), ("NoAns", ~has)):
            if those.any():
                out[f"{kind}_{name}"] = at_zero[those, column].mean()
    for column, name in enumerate(("best_exact", "best_f1")):
        score = best = float((~has).sum())
        threshold = 0.0
        for gold, text, lead in sorted(asked, key=lambda each: each[2]):
            score += raw(gold, text)[column] if gold else -bool(text)
            if score > best:
                best, threshold = score, lead
        out[name], out[f"{name}_thresh"] = 100 * best / len(asked), threshold
    return out


WORD = st.sampled_from(["film", "the film", "warm film", "the", "actor", ""])
ASKED = st.lists(
    st.tuples(st.lists(WORD, max_size=2).map(tuple), WORD, st.integers(-3, 3).map(float)),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=60)
@given(ASKED)
def test_measures_are_the_official_scripts(asked: list[tuple[Any, str, float]]) -> None:
    questions = Questions(
        [CONTEXT],
        np.zeros(1, np.int64),
        [Question(str(k), "", 0, gold, (0,) * len(gold)) for k, (gold, _, _) in enumerate(asked)],
    )
    answers = [Answer(text, lead) for _, text, lead in asked]
    task = SquadV2Task()
    metrics, details = task.summary(questions, answers, task.scores(questions, answers))
    expected = official(asked)
    assert metrics | details == pytest.approx(expected)
    assert set(details) == {"best_exact_thresh", "best_f1_thresh"}


def test_no_answer_is_set_against_the_best_span(subject: Subject, data: Path) -> None:
    task = SquadV2Task(SquadConfig(max_length=14, stride=2, max_question_tokens=4, device="cpu"))
    part = task.part(subject, read_questions(data, "dev", "2.0"))
    torch.manual_seed(0)
    model = subject.open_as("AutoModelForQuestionAnswering", torch.device("cpu")).eval()
    answers = task.answers(model, part)
    windows = part.encoded
    assert windows.types is not None
    for number, answer in enumerate(answers):
        spans, nulls = [], []
        for window in np.flatnonzero(windows.question == number):
            row = slice(windows.bounds[window], windows.bounds[window + 1])
            with torch.no_grad():
                out = model(
                    torch.tensor(windows.ids[row][None].astype(int)),
                    token_type_ids=torch.tensor(windows.types[row][None].astype(int)),
                )
            start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
            nulls.append(start[0] + end[0])
            at, offsets = windows.context_at[window], windows.offsets[window]
            for first in range(len(offsets)):
                for last in range(first, min(first + 30, len(offsets))):
                    text = CONTEXT[offsets[first, 0] : offsets[last, 1]]
                    spans.append((start[at + first] + end[at + last], text))
        assert len(nulls) > 1
        score, text = max(spans)
        assert answer.text == text
        assert answer.null_lead == pytest.approx(min(nulls) - score, abs=1e-5)


def test_unanswerable_questions_are_trained_to_point_at_the_classification_token(
    subject: Subject, data: Path
) -> None:
    task = SquadV2Task(SquadConfig(max_length=64, stride=16, max_question_tokens=12))
    windows = task.encode(subject, read_questions(data, "train", "2.0"))
    at_null = (windows.answer == windows.null_at).all(1)
    assert at_null.tolist() == [False, False, True, True]
    assert windows.left_out["answers that no window holds whole"] == 0


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"is_impossible": True}),
        (2, {"is_impossible": False}),
        (0, {"answers": []}),
        (0, {"is_impossible": "false"}),
        (2, {"is_impossible": "true"}),
    ],
)
def test_contradictions_are_refused(data: Path, number: int, changes: dict[str, Any]) -> None:
    made = values()
    made["data"][0]["paragraphs"][0]["qas"][number].update(changes)
    (data / "squad" / "dev-v2.0.json").write_text(json.dumps(made))
    with pytest.raises(
        DataError, match=r"is_impossible is .*, and the question has [01] answers?: it"
    ):
        read_questions(data, "dev", "2.0")


def test_the_versions_have_files_of_their_own(data: Path) -> None:
    assert len(read_questions(data, "train", "2.0")) == 4
    with pytest.raises(UsageError, match=r"train-v1\.1\.json does not exist"):
        read_questions(data, "train")
