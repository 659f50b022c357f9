"""Draws every picture of the documentation into docs/images: ``python docs/figures.py``.

Everything drawn is computed by the engine itself, so a picture cannot drift from the code. The same
versions of the libraries give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from drawn import engine, gallery, paper, schedules, words

from chronomask.report.drawing import appearance

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Draw all; print each file with its size."""
    IMAGES.mkdir(exist_ok=True)
    with appearance():
        figures = {
            **schedules.figures(),
            **engine.figures(),
            **words.figures(),
            **gallery.figures(),
        }
        for name, figure in figures.items():
            size = paper.save(figure, IMAGES / f"{name}.svg")
            print(f"{name}.svg  {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
