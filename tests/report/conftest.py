from pathlib import Path

import pytest

from tests.support.synthetic_runs import write_four_arms


@pytest.fixture(scope="session")
def four_arms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fixed 15 %, a decaying ratio, class weights, and both, 500 steps each; not to be changed."""
    return write_four_arms(tmp_path_factory.mktemp("runs"))
