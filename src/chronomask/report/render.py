"""HTML from templates, and the numbers behind what a page shows as CSV.

Every page extends ``base.html`` and so shares ``style.css``.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.errors import DataError, UsageError, need, shown
from chronomask.storage import is_file_name, names_file, write_text

if TYPE_CHECKING:
    from chronomask.report.drawing import Picture

__all__ = [
    "Cell",
    "Download",
    "isolate_names",
    "page_path",
    "picture_values",
    "render",
    "write_csv",
]

Cell = str | int | float | None
"""What a CSV file holds in a place."""
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Download:
    """A CSV file, both as a path beside the page and as a link that carries the file itself."""

    path: str
    data_uri: str


def page_path(out: Path, name: str) -> Path:
    """Where a page goes: ``out`` if that is an .html file, else the file ``name`` in the folder ``out``.

    Raises UsageError for a name that is a file's of another format, or a file's that is there.
    """
    if out.suffix.lower() in (".html", ".htm"):
        return out
    if names_file(out) or out.is_file():
        raise UsageError(
            f"--out {out}: the page is HTML; give a name that ends in .html, such as "
            f"{out.with_suffix('.html')}, or a folder"
        )
    return out / name


def render(template: Path, **values: Any) -> str:
    """The template at ``template`` filled with ``values``, all of them escaped for HTML.

    It may extend ``base.html`` and include ``style.css`` of this folder. Text that is markup
    already must come as :class:`markupsafe.Markup`. Raises UsageError where jinja2 is not installed.
    """
    jinja2 = need("jinja2", "report", "Writing an HTML page")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def isolate_names(html: str) -> str:
    """The page with every quoted name that is written from right to left in a direction of its own.

    Without that the sign and the per cent of a number behind it would be turned round too (Unicode's
    bidirectional algorithm).
    """

    def isolate(quoted: re.Match[str]) -> str:
        directions = {unicodedata.bidirectional(letter) for letter in quoted[1]}
        return f"“\u2068{quoted[1]}\u2069”" if directions & {"R", "AL"} else quoted[0]

    return re.sub("“([^“”]*)”", isolate, html)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """The text of a CSV file.

    Text that a spreadsheet would compute, such as an arm called ``=1+1``, gets an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in (columns, *rows):
        writer.writerow([_as_text(cell) for cell in row])
    return buffer.getvalue()


def write_csv(
    out: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]
) -> Download:
    """Write ``out/csv/<name>.csv`` as :func:`csv_text` has it.

    Raises DataError for a name, which may be one from a file, that would lead elsewhere.
    """
    if not is_file_name(name):
        raise DataError(f"{shown(name)} is to be the name of a table, and no file can be called so")
    text = csv_text(columns, rows)
    write_text(out / "csv" / f"{name}.csv", text)
    encoded = base64.b64encode(text.encode()).decode()
    return Download(f"csv/{name}.csv", f"data:text/csv;charset=utf-8;base64,{encoded}")


def _as_text(cell: Cell) -> Cell:
    """A cell that no spreadsheet takes for a formula (OWASP, "CSV Injection"); numbers stay as they are."""
    is_formula = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if is_formula else cell


def picture_values(out: Path, picture: Picture) -> dict[str, object]:
    """A picture as templates take it, its numbers written."""
    markup = need("markupsafe", "report", "Writing an HTML page").Markup
    return {
        "key": picture.key,
        "title": picture.title,
        "caption": picture.caption,
        "legend": picture.legend,
        # Our own SVG: names in it are either drawn as paths or escaped where it was made.
        "panels": [markup(panel) for panel in picture.panels],
        "download": write_csv(out, picture.key, picture.columns, picture.rows),
    }
