"""BabyLM's zero-shot sets: files in the official layout, scores one masked copy at a time, refusals."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.likelihood import even_weights
from chronomask.evaluate.pseudo import PseudoLikelihood
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.babylm import EntityTrackingTask, EwokTask, SupplementTask
from tests.support.scored_by_hand import by_hand
from tests.support.task_files import TAGS, babylm_lines, write_babylm
from tests.support.tiny_models import save_tiny

WORDS = [*TAGS]
LINES = babylm_lines(WORDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, tiny_tokenizer)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_babylm(tmp_path / "babylm", WORDS)
    return tmp_path


def of(folder: str) -> dict[str, list[dict[str, Any]]]:
    """Lines of one set by the file's name, in order of it."""
    found = {name: lines for name, lines in LINES.items() if name.startswith(f"{folder}/")}
    return {Path(name).stem: found[name] for name in sorted(found)}


def test_the_supplement_is_the_mean_of_its_files(model: Path, data: Path) -> None:
    task = SupplementTask()
    found = task.run(find_subject(str(model)), data, 0, False)
    means = {}
    for name, lines in of("supplement_filtered").items():
        score = cache(lambda text: by_hand(model, text, "within_word_l2r"))
        right = [score(p["sentence_good"]) > score(p["sentence_bad"]) for p in lines]
        means[name] = float(np.mean(right))
        assert found.details[f"paradigm/{name}"] == means[name]
    assert found.metrics["accuracy"] == pytest.approx(np.mean([*means.values()]))
    assert found.details["field/supplement"] == found.examples["correct"].mean()


@pytest.mark.parametrize("score", ["within_word_l2r", "original"])
def test_ewok_asks_for_the_target_and_for_the_context(model: Path, data: Path, score: str) -> None:
    task = EwokTask(PseudoLikelihood.parse({"score": score}))
    found = task.run(find_subject(str(model)), data, 0, False)

    @cache
    def given(target: str, context: str) -> float:
        return by_hand(model, f"{context} {target}", score, len(context))

    by_target, by_context = [], []
    for lines in of("ewok_filtered").values():
        rows = []
        for line in lines:
            c1, c2, t1, t2 = (line[k] for k in ("Context1", "Context2", "Target1", "Target2"))
            rows.append((
                (given(t1, c1) > given(t2, c1)) / 2 + (given(t2, c2) > given(t1, c2)) / 2,
                (given(t1, c1) > given(t1, c2)) / 2 + (given(t2, c2) > given(t2, c1)) / 2,
            ))  # fmt: skip
        # The pipeline asks a line one way round; its swapped copy is another line.
        one_way = [
            given(x["Target1"], x["Context1"]) > given(x["Target2"], x["Context1"]) for x in lines
        ]
        assert np.mean(one_way) == pytest.approx(np.mean([row[0] for row in rows]))
        by_target.append(np.mean([row[0] for row in rows]))
        by_context.append(np.mean([row[1] for row in rows]))
    assert found.metrics["accuracy"] == pytest.approx(np.mean(by_target))
    assert found.metrics["accuracy_contexts"] == pytest.approx(np.mean(by_context))
    assert found.details["domain/spatial-relations"] == pytest.approx(by_target[1])
    assert found.num_examples["items"] == 8


def test_entity_tracking_is_the_mean_over_files_of_means_over_operations(
    model: Path, data: Path
) -> None:
    path = data / "babylm" / "entity_tracking" / "regular.jsonl"
    lines = of("entity_tracking")
    lines["regular"] = [*lines["regular"][:2], lines["regular"][2] | {"options": [" baco"] * 4}]
    path.write_text("\n".join(map(json.dumps, lines["regular"])))
    found = EntityTrackingTask().run(find_subject(str(model)), data, 0, False)
    splits = []
    for name, of_split in lines.items():
        right: dict[int, list[float]] = {}
        for line in of_split:
            prefix = line["input_prefix"]
            scores = [
                by_hand(model, prefix + option, "within_word_l2r", len(prefix))
                for option in line["options"]
            ]
            share = (scores[0] == max(scores)) / scores.count(max(scores))
            right.setdefault(line["numops"], []).append(share)
        for number, shares in right.items():
            assert found.details[f"subset/{name}_{number}_ops"] == np.mean(shares)
        splits.append(np.mean([np.mean(shares) for shares in right.values()]))
    assert found.metrics["accuracy"] == pytest.approx(np.mean(splits))
    assert found.left_out == {"items whose likeliest endings are scored alike": 1}


def test_even_weights_by_hand() -> None:
    assert even_weights(["b", "a", "b", "b"]).tolist() == pytest.approx(
        [1 / 6, 1 / 2, 1 / 6, 1 / 6]
    )


def test_folders_are_found_by_the_names_of_the_pipeline(data: Path) -> None:
    task, inner = SupplementTask(), data / "babylm"
    whole = task.data_sha256(data)
    assert task.data_sha256(inner) == whole
    assert task.data_sha256(inner / "supplement_filtered") == whole
    (inner / "supplement_filtered").rename(inner / "supplement_fast")
    assert SupplementTask().data_sha256(data) == whole
    with pytest.raises(UsageError, match=r"ewok_filtered does not exist.*full_eval"):
        EwokTask().data_sha256(inner / "supplement_fast")


@pytest.mark.parametrize(
    ("task", "name", "line", "message"),
    [
        (SupplementTask, "supplement_filtered/hypernym", {"sentence_bad": 4}, "lacks sentence_bad"),
        (SupplementTask, "supplement_filtered/hypernym", {"UID": 4}, "lacks UID"),
        (EwokTask, "ewok_filtered/social-relations", {"Domain": None}, "line 1 lacks Domain"),
        (EwokTask, "ewok_filtered/social-relations", {"Target2": " "}, "Target2 is empty"),
        (EntityTrackingTask, "entity_tracking/regular", {"options": ["a"]}, r"options is \['a'\]"),
        (EntityTrackingTask, "entity_tracking/regular", {"options": "abc"}, "options is 'abc'"),
        (EntityTrackingTask, "entity_tracking/regular", {"options": ["a", 4]}, "two texts or more"),
        (EntityTrackingTask, "entity_tracking/regular", {"numops": None}, "lacks numops"),
        (EntityTrackingTask, "entity_tracking/regular", {"input_prefix": 1}, "lacks input_prefix"),
    ],
)
def test_lines_of_another_shape_are_refused(
    data: Path, task: Any, name: str, line: dict[str, Any], message: str
) -> None:
    good = LINES[f"{name}.jsonl"][0]
    (data / "babylm" / f"{name}.jsonl").write_text(json.dumps(good | line))
    with pytest.raises(DataError, match=message):
        task().data_sha256(data)


def test_a_text_without_a_token_is_refused(model: Path, data: Path) -> None:
    path = data / "babylm" / "entity_tracking" / "regular.jsonl"
    path.write_text(
        json.dumps({"input_prefix": "baco", "options": ["\u200b", " difu"], "numops": 0})
    )
    with pytest.raises(UsageError, match=r"no token to predict in '\\u200b'"):
        EntityTrackingTask().check(find_subject(str(model)), data)
