"""What a preparation of ``tests/assets/english.txt`` writes, kept in ``tests/assets/preparations.json``.

    python -m tests.support.golden_preparations     # after a change that is meant to change them

The file holds the SHA-256 of every file of rows and of every tokenizer, and the packages' versions.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chronomask.data.folder import PreparedData
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.storage import file_sha256
from tests.support.corpus import made_up_text

ASSETS = Path(__file__).parents[1] / "assets"
FILE = ASSETS / "preparations.json"
PACKAGES = ("numpy", "sentencepiece", "spacy", "tokenizers")

COMMON: dict[str, Any] = {"row_length": 64, "held_out": 0.1, "part_characters": 3000, "workers": 1}
CASES: dict[str, dict[str, Any]] = {
    "english": {"tokenizer": {"kind": "wordpiece", "vocab_size": 500}},
    "english-cased-documents": {
        "tokenizer": {"kind": "wordpiece", "vocab_size": 500, "lowercase": False},
        "packing": {"kind": "documents"},
    },
    "bytes": {
        "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 500},
        "tagger": {"kind": "none"},
        "packing": {"kind": "documents"},
    },
    "english-bytes": {"tokenizer": {"kind": "byte_level_bpe", "vocab_size": 500}},
    "unigram": {
        "tokenizer": {"kind": "unigram", "vocab_size": 300},
        "tagger": {"kind": "none"},
        "deduplication": {"kind": "exact"},
    },
    "bands": {
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "tagger": {"kind": "frequency_bands", "num_bands": 5},
    },
    "column": {
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "tagger": {"kind": "column"},
        "id_key": "id",
    },
}  # fmt: skip
"""What is not named is the default; ``tagger`` then is the bundled English one."""


def write_sources(folder: Path) -> dict[str, Path]:
    """The text, with made-up documents and one twice; and the same as words with tags."""
    english = (ASSETS / "english.txt").read_text(encoding="utf-8").strip()
    texts = [*english.split("\n\n"), *made_up_text(40, seed=3)]
    texts.append(texts[1])
    records = [
        {"id": f"n{k}", "words": words, "tags": [f"t{zlib.crc32(w.encode()) % 7}" for w in words]}
        for k, words in enumerate(text.split() for text in texts)
    ]
    plain, tagged = folder / "text.txt", folder / "words.jsonl"
    plain.write_text("\n\n".join(texts), encoding="utf-8")
    tagged.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return {"plain": plain, "tagged": tagged}


def prepared(case: str, sources: dict[str, Path], out: Path) -> PreparedData:
    """The text prepared as a case says."""
    values = COMMON | CASES[case]
    tagged = values.get("tagger", {}).get("kind") == "column"
    values["sources"] = [str(sources["tagged" if tagged else "plain"])]
    return prepare(PrepareConfig.parse(values), out, progress=False)


def hashes(data: PreparedData) -> dict[str, str]:
    """SHA-256 of the files that hold rows and of the tokenizer; of frequency bands, if there are some."""
    names = [entry.file for entry in data.manifest.shard_files()]
    names += ["tokenizer/tokenizer.json", "frequency_bands.json"]
    return {name: file_sha256(data.path / name) for name in names if (data.path / name).is_file()}


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder))
        for case in CASES:
            found[case] = hashes(prepared(case, sources, Path(folder) / case))
            print(f"{case}: {len(found[case])} files")
    values = {"versions": {name: version(name) for name in PACKAGES}, "sha256": found}
    FILE.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
