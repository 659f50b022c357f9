"""The reference of schedules names every member of every union; the arms of a few lines are valid."""

import re
from pathlib import Path

import pytest
import yaml

from chronomask.config import Alternative
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import ContentSchedule, WeightMap
from chronomask.masking.ratio import Schedule
from chronomask.masking.strategy import Strategy

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = (DOCS / "schedules.md").read_text(encoding="utf-8")


def kinds_of(family: type[Alternative]) -> list[str]:
    """The kinds that this package defines; tests define others."""
    return [
        k for k, member in family.kinds().items() if member.__module__.startswith("chronomask.")
    ]


@pytest.mark.parametrize("kind", kinds_of(Schedule))
def test_every_ratio_schedule_has_its_section_and_plot(kind: str) -> None:
    assert f"### `{kind}`:" in REFERENCE
    assert f"kind: {kind}" in REFERENCE
    assert (DOCS / "images" / f"ratio-{kind}.svg").is_file()


@pytest.mark.parametrize(
    "kind", [*kinds_of(ContentSchedule), *kinds_of(WeightMap), *kinds_of(Strategy)]
)
def test_every_other_schedule_is_described(kind: str) -> None:
    assert f"`{kind}`" in REFERENCE


def lines_in_tables(page: str) -> list[str]:
    """What a row of a table says in code of masking's keys, as one YAML text."""
    keys = "|".join(MaskingConfig.model_fields)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    found = ["\n".join(re.findall(rf"`((?:{keys}): [^`]+)`", row)) for row in rows]
    return [lines for lines in found if lines]


@pytest.mark.parametrize("lines", lines_in_tables((DOCS / "masking.md").read_text("utf-8")))
def test_every_arm_of_a_few_lines_is_a_valid_configuration(lines: str) -> None:
    assert MaskingConfig.parse(yaml.safe_load(lines)) != MaskingConfig()
