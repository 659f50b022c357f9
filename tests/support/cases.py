"""Small inputs of other people's troubles, run as their ``expected.md`` says: does what is right happen?

    python -m tests.support.cases FOLDER [01 02 …]

FOLDER holds a folder for each case: its input files, and ``expected.md`` with the commands in a block under
"## Command". Every case is copied, its commands are run there, and a check of the case, by the name of its
folder, looks at what came out. Prints a line a case, and last how many hold; exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import HANG, python_path
from tests.support.task_files import paradigm


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def prepared(self) -> None:
        """It did its work."""
        assert self.code == 0, self.err

    def refused(self, *words: str) -> None:
        """It ended with one line that holds these words (patterns)."""
        assert self.code in (1, 2), f"exit code {self.code}: {self.err}"
        lines = [line for line in self.err.splitlines() if line.startswith("chronomask: ")]
        assert len(lines) == 1, self.err
        for word in words:
            assert re.search(word, lines[0]), f"{word!r} is not in {lines[0]!r}"


Run = Callable[[str], Ran]


def statistics(folder: Path) -> dict[str, Any]:
    """What a preparation says of its text."""
    return json.loads((folder / "statistics.json").read_text(encoding="utf-8"))


def check_csv(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Four documents of lines that end in CR, and UTF-16 told by its mark; the same packed, and as .tsv."""
    ran[0].prepared()
    assert statistics(case / "out")["documents"] == 4
    ran[1].refused("UTF-16", "byte order mark")
    import gzip

    for name in ("cr-only.csv", "utf16.csv"):
        (case / f"{name}.gz").write_bytes(gzip.compress((case / name).read_bytes()))
        commas = (case / name).read_bytes()
        (case / name.replace("csv", "tsv")).write_bytes(commas)
    options = (
        "--workers 1 --set row_length=32 --set tokenizer.vocab_size=200 --set tagger.kind=none"
    )
    run(f"chronomask prepare cr-only.csv.gz --out out3 {options}").prepared()
    assert statistics(case / "out3")["documents"] == 4
    for name in ("utf16.csv.gz", "utf16.tsv"):
        run(f"chronomask prepare {name} --out out4 {options}").refused("UTF-16")


def check_file_name(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Two documents, the name shown with an escape."""
    ran[1].prepared()
    found = statistics(case / "out")
    assert found["documents"] == 2
    assert found["sources"][0]["file"] == r"texts/caf\xe9.txt"


def check_window(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """A window that is too large is named, with the way out."""
    ran[0].refused("window of 2,147,483,648 bytes", "zstd -dc --long=31")
    assert "corrupt" not in ran[0].err


def check_ideographs(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Every character has its entry, or what is unknown is said."""
    ran[0].prepared()
    splits = statistics(case / "out")["splits"].values()
    unknown = sum(split["unknown_tokens"] for split in splits)
    assert not unknown or "unknown" in ran[0].err


def check_missing_weights(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """A new head only where it is asked for; the prefix of torch.compile is taken off, or is named."""
    ran[2].refused("head")
    if ran[3].code:
        ran[3].refused("_orig_mod")
    else:
        assert "_orig_mod" in ran[3].err


def check_damaged(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """The file that is cut short, and the weight that does not fit, for training and for evaluation."""
    ran[2].refused(r"cut", r"model\.safetensors")
    ran[3].refused("position_embeddings")
    ran[4].refused(r"cut", r"model\.safetensors")


def check_holes(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """The vocabulary is as large as the largest id asks, or the id is named before any work."""
    if ran[0].code:
        ran[0].refused("70,?382|70,?38[0-9]")
        return
    values = json.loads((case / "out" / "manifest.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((case / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    assert values["vocab_size"] == 1 + max(vocabulary["model"]["vocab"].values())


def check_quote(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Five documents: in .tsv a quotation mark is text."""
    ran[0].prepared()
    assert statistics(case / "out")["documents"] == 5


def check_link(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Six documents, of the folder and of the pattern."""
    ran[0].prepared()
    command = (
        "--workers 1 --set row_length=32 --set tokenizer.vocab_size=200 --set tagger.kind=none"
    )
    run(f"chronomask prepare 'texts/**' --out out2 {command}").prepared()
    assert statistics(case / "out")["documents"] == statistics(case / "out2")["documents"] == 6


def check_hidden(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Three documents; the hidden folder is counted and named."""
    ran[0].prepared()
    found = statistics(case / "out")
    assert found["documents"] == 3
    assert found["skipped"]["hidden"]["names"] == ["texts/.ipynb_checkpoints/"]
    assert ".ipynb_checkpoints" in ran[0].err


def check_one_word(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Five words by the vocabulary's marks, or a refusal that names another score."""
    if ran[2].code:
        ran[2].refused(r"--set blimp\.score=original")
        return
    ran[1].prepared()
    words = json.loads(ran[1].out.split("word of each token: ")[1].splitlines()[0])
    order = sorted(set(words[1:-1]))
    assert [order.index(word) for word in words[1:-1]] == [0, 1, 2, 2, 3, 4, 4, 4]


def check_lines(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """Every line is a document, and that is said; or what was left out is."""
    ran[0].prepared()
    assert "a-lines.txt" in ran[0].err
    assert statistics(case / "out")["documents"] > 100


def check_no_heads(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """FNet trains."""
    ran[1].prepared()
    assert (case / "run" / "summary.json").is_file()


def check_marks(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """It ends; that the time is linear is counted in the suite, for a clock cannot tell."""
    ran[0].prepared()
    assert statistics(case / "out")["characters"] > 15_000


def check_array(case: Path, ran: Sequence[Ran], run: Run) -> None:
    """What the file is, and what makes lines of it."""
    for command in ran:
        command.refused("one JSON array, not one object a line", r"jq -c '\.\[\]'")


CHECKS: dict[str, Callable[[Path, Sequence[Ran], Run], None]] = {
    "01-csv-utf16-or-cr": check_csv,
    "02-file-name-not-utf8": check_file_name,
    "04-zstd-long-window": check_window,
    "05-wordpiece-1000-characters": check_ideographs,
    "06-checkpoint-without-its-weights": check_missing_weights,
    "07-checkpoint-damaged": check_damaged,
    "08-tokenizer-with-holes": check_holes,
    "09-unclosed-quote": check_quote,
    "10-linked-folder": check_link,
    "11-hidden-folder": check_hidden,
    "12-blimp-tokenizer-of-one-word": check_one_word,
    "14-lines-without-blank-lines": check_lines,
    "15-no-attention-heads": check_no_heads,
    "16-repeated-mark": check_marks,
    "17-json-array": check_array,
}
"""What is right, by the name of the case's folder."""


def commands_of(expected: str) -> list[str]:
    """The command lines of an ``expected.md``."""
    block = re.search(r"^## Command.*?^```\n(.*?)^```", expected, re.MULTILINE | re.DOTALL)
    assert block is not None, "it has no block of commands"
    return block[1].splitlines()


def run_command(line: str, folder: Path) -> Ran:
    """Run a command line of ``chronomask`` or ``python`` in a folder."""
    program, *arguments = shlex.split(line, comments=True)
    module = ["-m", "chronomask"] if program == "chronomask" else []
    if arguments[:1] == ["evaluate"]:  # the option has another name since the cases were written
        arguments = ["--task-data" if word == "--data" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, *module, *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True, text=True, errors="replace", timeout=HANG, check=False,
    )  # fmt: skip
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in ran.err, f"{line}: traceback, {ran.err.strip().splitlines()[-1]}"
    return ran


def copy_case(case: Path, folder: Path) -> Path:
    """A copy to work in; a file that only names another folder is the link that it was before."""
    copy = folder / case.name
    shutil.copytree(case, copy, symlinks=True)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in copy.rglob("*"):
        if path.is_file() and path.stat().st_size < 200 and not path.suffix:
            target = path.read_bytes().decode("utf-8", "replace").strip()
            if "\n" not in target and target and (path.parent / target).is_dir():
                path.unlink()
                path.symlink_to(target)
    return copy


def failure_of(case: Path, folder: Path) -> str:
    """Run a case and check it; what is wrong, "" if it holds."""
    try:
        copy = copy_case(case, folder)
        lines = commands_of((copy / "expected.md").read_text(encoding="utf-8"))
        ran = [run_command(line, copy) for line in lines]
        CHECKS[case.name](copy, ran, lambda line: run_command(line, copy))
    except (AssertionError, OSError, LookupError) as error:
        (*_, place) = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} at {place.line}: {error}"
    return ""


def main() -> int:
    """Run the cases that are asked for, all without a name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("numbers", nargs="*")
    asked = parser.parse_args()
    found = sorted(path.parent for path in asked.cases.glob("*/expected.md"))
    chosen = [case for case in found if not asked.numbers or case.name[:2] in asked.numbers]
    held = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        blimp = folder / "18-blimp-files" / "latin1"  # which two of the cases evaluate
        blimp.mkdir(parents=True)
        (blimp / "order.jsonl").write_text(paradigm("order", "agreement", 0, 4))
        for case in chosen:
            failure = failure_of(case, folder)
            held += not failure
            print(f"{case.name}: {failure or 'holds'}", flush=True)
    print(f"{held} of {len(chosen)} cases hold")
    return held < len(chosen)


if __name__ == "__main__":
    sys.exit(main())
