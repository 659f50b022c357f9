"""What the documentation says in code: fenced blocks, shell commands in them, code within sentences."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Code:
    """Code of a page, with the place where it begins."""

    page: str
    line: int
    kind: str
    """the language of a fenced block; ``span`` within a sentence"""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def written_pages() -> list[Path]:
    """Every page that people read, but those that the build makes of the code."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "reference" not in page.relative_to(ROOT).parts]


def fenced(*kinds: str) -> list[Code]:
    """The fenced blocks of all pages, of the languages named or of all."""
    texts = [(page, page.read_text(encoding="utf-8")) for page in written_pages()]
    return [
        _code(page, text, match, match[1], match[2])
        for page, text in texts
        for match in _FENCE.finditer(text)
        if not kinds or match[1] in kinds
    ]


def spans() -> list[Code]:
    """Code within sentences and tables, line breaks as spaces."""
    found = []
    for page in written_pages():
        text = page.read_text(encoding="utf-8")
        prose = without_blocks(text)
        for match in _SPAN.finditer(prose):
            code = " ".join(match[2].replace("\\|", "|").split())
            found.append(_code(page, prose, match, "span", code))
    return found


def without_code(text: str) -> str:
    """A page's text with blanks in the place of all code."""
    return _SPAN.sub(lambda span: re.sub(r"[^\n]", " ", span[0]), without_blocks(text))


def without_blocks(text: str) -> str:
    """A page's text with blanks in the place of fenced blocks."""
    return _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)


def _code(page: Path, text: str, match: re.Match[str], kind: str, code: str) -> Code:
    line = text.count("\n", 0, match.start()) + 1
    return Code(page.relative_to(ROOT).as_posix(), line, kind, code)


def commands(code: Code) -> list[list[str]]:
    """The words of every command in a shell block: comments dropped, continued lines joined."""
    lines = code.text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def chronomask_words(words: list[str]) -> list[str] | None:
    """What a command line gives to chronomask, also after srun or torchrun; None for other commands."""
    for start in (["chronomask"], ["-m", "chronomask"]):
        for at in range(len(words)):
            before = words[:at]
            if words[at : at + len(start)] == start and (
                not before or before[0] in ("srun", "torchrun")
            ):
                rest = words[at + len(start) :]
                return rest[: rest.index(">")] if ">" in rest else rest
    return None


def python_blocks(text: str) -> list[str]:
    """The Python code of a page's blocks in order; of a diff, what is there once it is applied."""
    blocks = _FENCE.findall(text)
    return [
        _applied(code) if kind == "diff" else code
        for kind, code in blocks
        if kind in ("python", "diff")
    ]


def _applied(diff: str) -> str:
    lines = [line for line in diff.splitlines() if not line.startswith("-")]
    return "".join(f"{line[1:]}\n" for line in lines)
