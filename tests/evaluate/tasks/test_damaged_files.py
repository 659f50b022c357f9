"""Files of tasks damaged at random: each is read, or refused in one sentence that names its file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronomask.errors import ChronomaskError
from chronomask.evaluate.tasks import REGISTRY
from chronomask.evaluate.tasks.babylm import EntityTrackingTask, EwokTask, SupplementTask
from chronomask.evaluate.tasks.retrieval import Retrieval, collection_files, read_collection
from chronomask.evaluate.tasks.squad import read_questions
from chronomask.evaluate.tasks.superglue import SuperGlueTask
from tests.support.fuzz_files import damage
from tests.support.official_files import write_squad
from tests.support.task_files import (
    TAGS,
    unanswerable,
    write_babylm,
    write_collection,
    write_superglue,
)


def read_superglue(name: str) -> Callable[[Path], Any]:
    task = REGISTRY[name]
    assert isinstance(task, SuperGlueTask)
    return task.read


READERS: dict[str, Callable[[Path], Any]] = {
    "retrieval/corpus.jsonl": lambda d: read_collection(*collection_files(d, Retrieval())),
    "retrieval/queries.jsonl": lambda d: read_collection(*collection_files(d, Retrieval())),
    "retrieval/qrels/test.tsv": lambda d: read_collection(*collection_files(d, Retrieval())),
    "superglue/BoolQ/val.jsonl": read_superglue("boolq"),
    "superglue/COPA/train.jsonl": read_superglue("copa"),
    "superglue/WiC/val.jsonl": read_superglue("wic"),
    "superglue/WSC/val.jsonl": read_superglue("wsc"),
    "squad/dev-v2.0.json": lambda d: read_questions(d, "dev", "2.0"),
    "babylm/supplement_filtered/hypernym.jsonl": lambda d: SupplementTask().items(d),
    "babylm/ewok_filtered/social-relations.jsonl": lambda d: EwokTask().items(d),
    "babylm/entity_tracking/regular.jsonl": lambda d: EntityTrackingTask().items(d),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_collection(folder / "retrieval", [*TAGS])
    write_superglue(folder / "superglue", 4)
    write_babylm(folder / "babylm", [*TAGS])
    asked = unanswerable([("the film was warm", [("what was warm?", "film")])])
    write_squad(folder / "squad", asked, asked, version="2.0")
    return folder


def refusal(files: Path, name: str) -> str:
    """What a reader says of the file, which is printable; empty where it reads it."""
    try:
        READERS[name](files)
    except ChronomaskError as error:
        text = str(error)
    else:
        text = ""
    assert not text or text.isprintable()
    return text


@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_by_the_files_name_or_read(files: Path, name: str) -> None:
    path = files / name
    whole = path.read_bytes()
    READERS[name](files)
    refused = 0
    for number in range(30):
        path.write_bytes(damage(whole, random.Random(f"{name}-{number}")))
        text = refusal(files, name)
        assert not text or path.name in text
        refused += bool(text)
    path.write_bytes(whole)
    assert refused > 5


VALUES = [None, True, 5, -1, 1e400, "", "\u202e", [], [1], {}, {"a": [None]}, "x" * 1000]


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith("jsonl")])
def test_values_of_any_kind_under_any_key_are_refused_or_read(files: Path, name: str) -> None:

    path = files / name
    whole = path.read_text()
    first, *rest = whole.splitlines()
    for key in json.loads(first):
        for value in VALUES:
            line = json.dumps(json.loads(first) | {key: value})
            path.write_text("\n".join([line, *rest]))
            assert len(refusal(files, name)) < 500
    path.write_text(whole)
