"""A tiny masked language model in a folder, and official files for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chronomask.evaluate.subject import Subject, find_subject
from tests.support.official_files import write_glue
from tests.support.official_model import save_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors gain nothing from more


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def subject(model_folder: Path) -> Subject:
    return find_subject(str(model_folder))


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A folder with a small ``glue`` folder in it."""
    write_glue(tmp_path / "data" / "glue")
    return tmp_path / "data"
