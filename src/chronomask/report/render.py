"""Fills HTML templates: every page extends ``base.html`` and so shares ``style.css``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render"]

_FOLDER = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """The template at ``template`` filled with ``values``, all of them escaped for HTML.

    It may extend ``base.html`` and include ``style.css`` of this folder. Text that is markup
    already must come as :class:`markupsafe.Markup`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
