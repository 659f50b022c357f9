"""The page of speed figures, and the README's table, made of what the benchmarks wrote.

    python -m docs.speed_page                              # both, from benchmarks/figures/*.json
    python -m docs.speed_page --measure masking training   # measures these first; all: every one

Every figure is in one file, with the date, the machine and the versions that the benchmark noted itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["main", "page", "readme_table", "write"]

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benchmarks" / "figures"
START, END = "<!-- speed: made by `python -m docs.speed_page` -->", "<!-- /speed -->"


@dataclass(frozen=True)
class Row:
    """One line: a format of a file's figures, and what they are compared with."""

    what: str
    figure: str
    beside: str = ""
    readme: bool = False


@dataclass(frozen=True)
class Section:
    """The figures of one benchmark, as docs/speed.yaml lays them out."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]


def sections() -> list[Section]:
    """The sections in the order of the page."""
    layout = yaml.safe_load((ROOT / "docs" / "speed.yaml").read_text(encoding="utf-8"))
    return [
        Section(
            name,
            values["title"],
            values["about"],
            tuple(Row(**row) for row in values.get("rows", ())),
        )
        for name, values in layout.items()
    ]


def page(folder: Path = FIGURES) -> str:
    """docs/speed.md of the figures in ``folder``; a benchmark without a file there has no section."""
    stored = read(folder)
    lines = [
        "# Speed and memory",
        "",
        "This page says how fast chronomask is, compared with what people use today. Each section says",
        "what was measured, when, and on which machine. A figure such as 2.0× says how many times as fast",
        "chronomask is; brackets give both times or speeds, chronomask's first. Both sides take turns on",
        "the same machine, and their medians are compared, unless a section says otherwise. Processor",
        "time is the time that the threads of a process spent computing. A machine that does other work",
        "changes the figures.",
        "",
        "`python -m docs.speed_page` makes this page from `benchmarks/figures/`; with `--measure all` it",
        "runs the benchmarks first.",
    ]
    for section in sections():
        if section.name in stored:
            lines += ["", f"## {section.title}", "", *of_section(section, stored[section.name])]
    return "\n".join(lines) + "\n"


def of_section(section: Section, figures: Mapping[str, Any]) -> list[str]:
    """What was measured, with what, and the table."""
    table = figures.get("table")
    if table:
        rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    else:
        rows = [["what", "figure", "compared with"], ["---"] * 3]
        rows += [
            [row.what, row.figure.format_map(figures), row.beside.format_map(figures)]
            for row in measured(section.rows, figures)
        ]
    return [section.about, "", origin(figures), "", *map(table_line, rows)]


def readme_table(folder: Path = FIGURES) -> str:
    """The README's lines, between their marks."""
    stored = read(folder)
    rows = [["what", "how much better", "compared with"], ["---"] * 3]
    rows += [
        [
            f"{section.title[0].lower()}{section.title[1:]}: {row.what}",
            row.figure.format_map(figures).partition(" (")[0],
            row.beside,
        ]
        for section in sections()
        if (figures := stored.get(section.name))
        for row in measured(section.rows, figures)
        if row.readme
    ]
    return "\n".join([START, *map(table_line, rows), END])


def measured(rows: Sequence[Row], figures: Mapping[str, Any]) -> list[Row]:
    """The rows whose figures were measured: a benchmark may be asked for some alone."""
    found = []
    for row in rows:
        try:
            (row.figure + row.beside).format_map(figures)
        except (KeyError, TypeError, ValueError):
            continue
        found.append(row)
    return found


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def origin(figures: Mapping[str, Any]) -> str:
    """Date, machine, the versions that matter most, and the command, as far as the file has them."""
    noted = figures["recorded"]
    machine = noted["machine"]
    cores = f", {machine['cores']} cores" if machine["cores"] else ""
    place = machine["device"] or f"{machine['processor']}{cores}"
    shown = {name: noted["versions"].get(name) for name in ("chronomask", "torch", "transformers")}
    versions = ", ".join(f"{name} {number}" for name, number in shown.items() if number)
    return f"*{noted['date']}, {place}; {versions or 'versions not noted'}.* `{noted['command']}`"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The stored figures by the name of their benchmark."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")
    }


def write(root: Path = ROOT) -> None:
    """Write docs/speed.md, and the table of the README."""
    (root / "docs" / "speed.md").write_text(page(), encoding="utf-8")
    readme = root / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{readme_table()}{after}", encoding="utf-8")


def measure(name: str) -> bool:
    """Run one benchmark and store the JSON of its last line; False: it failed, and what it printed tells."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    print(f"{name} …", flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout, end="", flush=True)
        return False
    figures = json.loads(done.stdout.splitlines()[-1])
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (FIGURES / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    return True


def main() -> None:
    """Measure what is asked for, then write the page and the table."""
    names = [section.name for section in sections() if section.rows]
    parser = argparse.ArgumentParser(description="Make docs/speed.md of the stored figures.")
    parser.add_argument("--measure", nargs="+", choices=[*names, "all"], default=[])
    asked = parser.parse_args().measure
    failed = [name for name in (names if "all" in asked else asked) if not measure(name)]
    write()
    if failed:
        raise SystemExit(
            f"these benchmarks failed, and their figures are as before: {', '.join(failed)}"
        )


if __name__ == "__main__":
    main()
