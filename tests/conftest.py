"""Fixtures for every room: a small tokenizer and a small prepared folder, made once per session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve a busy machine
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores already
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
os.environ["USE_HUB_KERNELS"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from chronomask.data.folder import PreparedData
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from tests.support.corpus import made_up_text
from tests.support.fixed_tagger import FixedTagger, stand_in_for_english

# Flushing to the disk guards against a loss of power, which no test has; a descriptor must still be one.
os.fsync = os.fstat  # pyright: ignore[reportAttributeAccessIssue]

settings.register_profile("chronomask", deadline=None)  # how long an example takes decides nothing
settings.load_profile("chronomask")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need a CUDA device; what torch says there of itself is shown, and is no error.

    It tells of sums that could be faster, of checks that are a prototype, and of what it compiles.
    """
    for item in items:
        if item.get_closest_marker("gpu"):
            there = torch.cuda.is_available()
            item.add_marker(pytest.mark.skipif(not there, reason="needs a CUDA device"))
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A prepared folder: rows of 32 tokens, 18 classes, a WordPiece of at most 512 ids, both splits.

    Read only: copy ``tiny_data.path`` before changing anything in it.
    """
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text("\n\n".join(made_up_text(300)), encoding="utf-8")
    config = PrepareConfig.parse(
        {
            "sources": [str(folder / "text.txt")],
            "tokenizer": {"kind": "wordpiece", "vocab_size": 512},
            "row_length": 32,
            "held_out": 0.1,
            "workers": 1,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_english(patch, FixedTagger())
        return prepare(config, folder / "data", progress=False)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_data: PreparedData) -> Path:
    """Folder of the tokenizer of ``tiny_data``; ``AutoTokenizer.from_pretrained`` opens it."""
    return tiny_data.tokenizer_path
