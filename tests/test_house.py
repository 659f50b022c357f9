"""What holds in every room: names, docstrings, imports, and pages that are true of the code."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import grimp
import pytest
import typer

from chronomask.cli import app

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
MODULES = sorted((SRC / "chronomask").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LONG = 20
"""Lines from which a function needs a docstring."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(file: Path) -> str:
    """The dotted name of a module."""
    parts = file.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions_in(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below ``node`` with its name, classes and functions around it included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if isinstance(child, Function):
                yield name, child
            yield from functions_in(child, f"{name}.")
        else:
            yield from functions_in(child, prefix)


def is_text(node: ast.stmt | None) -> bool:
    """Whether a statement is a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def undocumented_names(tree: ast.Module) -> Iterator[str]:
    """The names in a module's ``__all__`` that are defined there and have no docstring."""
    public: set[str] = set()
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() as value):
                public = set(ast.literal_eval(value))
    for statement, after in zip_longest(tree.body, tree.body[1:]):
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                documented = ast.get_docstring(statement) is not None
            case ast.ClassDef(name=name):
                documented = ast.get_docstring(statement) is not None
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                documented = is_text(after)
            case _:
                continue
        if name in public and not documented:
            yield name


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_long_functions_and_public_names_have_docstrings(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has none"
    long = {
        name
        for name, function in functions_in(tree)
        if (function.end_lineno or 0) - function.lineno + 1 >= LONG
        and ast.get_docstring(function) is None
    }
    assert long == set()
    assert set(undocumented_names(tree)) == set()


PARTICIPLE = re.compile(
    r"_*(\w*[a-z]ed|told|laid|drawn|said|written|kept|chosen|shown|taken|made|known|hidden|heard|seen)"
)
NOUNS_AND_VERBS = {"_embed", "_speed", "embed", "need", "seed", "speed"}
LIKE_SORTED = {"decompressed", "nested", "shown"}  # another form of their argument, as Python's own


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_functions_are_named_by_what_they_do_or_give(file: Path) -> None:
    """Verbs or nouns, such as ``describe_error`` and ``mean_ratio``; not what was done, ``_told``."""
    names = {
        function.name
        for _, function in functions_in(ast.parse(file.read_text(encoding="utf-8")))
        if "_" not in function.name.strip("_")  # of one word
        and PARTICIPLE.fullmatch(function.name)
        and not is_property(function)
    }
    assert names - NOUNS_AND_VERBS - LIKE_SORTED == set()


def is_property(function: Function) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list)


RIDDLES = re.compile(
    r"\b(may enter:|(is|are|was|be) had\b|needed but\b|asked of\b|in vain\b|told (by|from)\b)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_messages_and_docstrings_speak_plainly(file: Path) -> None:
    texts = [
        " ".join(node.value.split())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    found = {found.group().lower() for text in texts for found in RIDDLES.finditer(text)}
    assert found == set()


COMMANDS = "|".join(typer.main.get_command(app).commands)  # pyright: ignore
COMMAND = re.compile(
    rf"(?:\bchronomask (?:{COMMANDS})\b"
    rf"|\b(?:{COMMANDS}) --(?:branch|data|model|out|task-data|tokenizer)\b)[^:;,]*$"
)
"""A command that a message suggests, up to where a value is put into it."""


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_commands_in_messages_can_be_pasted(file: Path) -> None:
    """A path with a space in it is one argument of the command."""
    unquoted: list[tuple[int, str]] = []
    for text in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        before = ""
        for part in text.values if isinstance(text, ast.JoinedStr) else ():
            if not isinstance(part, ast.FormattedValue):
                before += ast.literal_eval(part)
                continue
            value = ast.unparse(part.value)
            if COMMAND.search(before) and "quote" not in value:
                unquoted.append((part.lineno, value))
            before += "…"
    assert unquoted == []


def test_modules_are_named_after_what_is_in_them() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert [file for file in MODULES if vague & set(file.with_suffix("").parts)] == []


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count: two modules that need each other are one, or three."""
    graph = grimp.build_graph("chronomask", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    order = graphlib.TopologicalSorter(imported)
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_tests_share_what_is_in_support_and_nothing_else(file: Path) -> None:
    imported = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports by a relative name"
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
    of_tests = [name for name in imported if re.match(r"(tests|conftest|test_\w+)\b", name)]
    assert [name for name in of_tests if not name.startswith("tests.support")] == []


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Fenced blocks of a language in every page, with the place of each."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{page.relative_to(ROOT)}:{line}", found.group(1)


@pytest.mark.parametrize("code", [pytest.param(code, id=at) for at, code in blocks("python")])
def test_python_in_pages_parses_and_imports_what_is_there(code: str) -> None:
    """What is not there raises ModuleNotFoundError, which names it."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chronomask"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):  # else it must be a module inside
                    importlib.import_module(f"{node.module}.{alias.name}")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every call of ``chronomask`` in a page's shell blocks, lines joined, cut into words."""
    for language in ("(?:ba|z)?sh", "console", "shell"):
        for place, code in blocks(language):
            for line in code.replace("\\\n", " ").splitlines():
                words = line.partition("#")[0].split()
                for mark in ("$", "PYTHONPATH=src"):
                    words = words[1:] if words[:1] == [mark] else words
                if words and words[0].rpartition("/")[2] == "chronomask":
                    yield place, words[1:]


@pytest.mark.parametrize(("place", "words"), [pytest.param(*c, id=c[0]) for c in commands()])
def test_commands_in_pages_exist_with_their_options(place: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{place}: there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert used - known == set(), place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_files_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(
        r"\b((?:src|tests|benchmarks|examples|scripts|tagger|docs)/[\w./-]*\w)", text
    )
    if page.name != "CHANGELOG.md":  # which also names what is gone
        assert sorted({path for path in paths if not (ROOT / path).exists()}) == []
    for target in re.findall(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            file = (page.parent / target).resolve()
            # The site's build makes the pages of reference/; tests/test_links.py knows which.
            assert file.exists() or file.parent == ROOT / "docs" / "reference", target


SPOKEN = sorted(
    file
    for pattern in ("*.md", "*.py", "*.yaml", "*.html", "*.sh", "*.toml", "Makefile")
    for folder in (".", "src", "tests", "docs", "benchmarks", "examples", "scripts", "tagger")
    for file in ((ROOT).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
)
ELSEWHERE = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w|\bissue #?\d|\bpull request #?\d")


def test_the_repository_speaks_of_the_product_alone() -> None:
    """No path of somebody's machine, and no number of an issue that a reader cannot open."""
    found = {
        str(file.relative_to(ROOT)): ELSEWHERE.findall(file.read_text(encoding="utf-8"))
        for file in SPOKEN
        if file != Path(__file__)
    }
    assert {file: words for file, words in found.items() if words} == {}
