"""Links of the README and of docs/ lead somewhere: to a file, to a heading in it; no picture is left over."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.support.documents import ROOT, without_blocks, without_code, written_pages

LINK = re.compile(r"\]\(([^)\s]+)\)")
RESULTS = ROOT / "docs" / "results"
GENERATED = {"commands", "run", "preparation", "study", "tasks", "api"}
"""Pages that the build of the site makes of the code, in docs/reference."""


def links() -> list[tuple[Path, str]]:
    """Every link of every page to something that is not on the web."""
    found = [
        (p, t) for p in written_pages() for t in LINK.findall(without_code(p.read_text("utf-8")))
    ]
    return [(page, target) for page, target in found if not re.match(r"https?:|mailto:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#{1,6} (.+)$", without_blocks(page.read_text("utf-8")), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings]
    return {
        s if slugs[:n].count(s) == 0 else f"{s}-{slugs[:n].count(s)}" for n, s in enumerate(slugs)
    }


def test_links_lead_to_files_and_headings() -> None:
    broken = []
    for page, target in links():
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        generated = file.parent == ROOT / "docs" / "reference" and file.stem in GENERATED
        left_out = (
            RESULTS in file.parents and not (RESULTS / "tiny").is_dir()
        )  # in a source archive
        if generated or left_out or (file.exists() and (not anchor or anchor in anchors(file))):
            continue
        broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert len(links()) > 80
    assert not broken, "\n".join(broken)


def test_every_picture_and_every_result_is_shown_somewhere() -> None:
    shown = {(page.parent / target.partition("#")[0]).resolve() for page, target in links()}
    pictures = set((ROOT / "docs" / "images").iterdir())
    results = {path for path in (ROOT / "docs" / "results").iterdir() if path.suffix != ".md"}
    assert not (pictures | results) - shown
    for picture in pictures:
        assert picture.stat().st_size < 100_000, picture.name


def test_extras_that_pages_name_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = "\n".join(page.read_text("utf-8") for page in written_pages())
    named = {
        x for list_ in re.findall(r"(?:chronomask|\.)\[([a-z,]+)\]", text) for x in list_.split(",")
    }
    table = (ROOT / "docs" / "install.md").read_text("utf-8").split("| extra |")[1].split("\n\n")[0]
    rows = {x for line in table.splitlines() for x in re.findall(r"`([a-z]+)`", line.split("|")[1])}
    assert named <= set(extras)
    assert rows == set(extras) - {"docs", "test"}


def test_every_page_is_in_the_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    entries = {
        line.strip()
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
        for line in block.splitlines()
    }
    docs = ROOT / "docs"
    own = {page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md")}
    assert own - {"index"} <= entries
