"""Numbers behind figures and tables as CSV: beside the page, and inside it for whoever has the page alone."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from chronomask.report.drawing import Picture
from chronomask.storage import write_text

__all__ = ["Cell", "Download", "figure_values", "write_csv"]

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Download:
    """A CSV file, both as a path beside the page and as a link that carries the file itself."""

    path: str
    data_uri: str


def write_csv(
    out: Path, name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]
) -> Download:
    """Write ``out/csv/<name>.csv``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    text = buffer.getvalue()
    write_text(out / "csv" / f"{name}.csv", text)
    encoded = base64.b64encode(text.encode()).decode()
    return Download(f"csv/{name}.csv", f"data:text/csv;charset=utf-8;base64,{encoded}")


def figure_values(out: Path, picture: Picture) -> dict[str, object]:
    """A picture as templates take it, its numbers written."""
    return {
        "key": picture.key,
        "title": picture.title,
        "caption": picture.caption,
        "legend": picture.legend,
        # Our own SVG: names in it are either drawn as paths or escaped where it was made.
        "panels": [Markup(panel) for panel in picture.panels],
        "download": write_csv(out, picture.key, picture.columns, picture.rows),
    }
