"""A default that changes, changes what every user gets who sets nothing: it is never changed by accident."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.defaults import defaults

STORED = Path(__file__).parent / "assets" / "defaults.yaml"


def test_every_default_is_the_one_that_is_stored() -> None:
    """A change that is meant is noted in CHANGELOG.md, and stored as :mod:`tests.support.defaults` says."""
    stored, now = yaml.safe_load(STORED.read_text(encoding="utf-8")), defaults()
    assert list(now) == list(stored)
    for name, values in now.items():
        assert values == stored[name], name
