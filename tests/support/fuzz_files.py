"""Files of every format, damaged at random: each gives documents and an account, or one refusal.

``python -m tests.support.fuzz_files --number 20000`` prints how many of each; exit code 1 if one was
neither. Mutation n is a function of n and ``--seed`` alone, and a failure names both.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import sys
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import zstandard

from chronomask.errors import ChronomaskError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
from tests.support.fuzz_configs import command, no_hang

TEXTS = ["The first text.\nOf two lines.", "Zweitens: Übergröße, \u2028 und so.", "3 👍 " * 20]
WORDS = [{"words": text.split(), "tags": ["X"] * len(text.split())} for text in TEXTS]


def parquet() -> bytes:
    """Text, words and tags, in small pages and two row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": k, "text": t, **w} for k, (t, w) in enumerate(zip(TEXTS, WORDS, strict=True))]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows * 4), buffer, row_group_size=7, data_page_size=64)
    return buffer.getvalue()


def warc() -> bytes:
    """Three records of text and one of another kind."""
    head = "WARC/1.0\r\nWARC-Type: {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n"
    kinds = ("conversion", "resource", "conversion")
    records = [(kind, text.encode()) for kind, text in zip(kinds, TEXTS, strict=True)]
    records.append(("warcinfo", b"about"))
    return b"".join(head.format(k, len(d)).encode() + d + b"\r\n\r\n" for k, d in records)


SAMPLES: dict[str, Callable[[], bytes]] = {
    ".txt": lambda: "\n\n".join(TEXTS).encode(),
    ".jsonl": lambda: "\n".join(
        json.dumps({"id": k, "text": t, "deep": [[{"a": [k]}]], **w}, ensure_ascii=k < 2)
        for k, (t, w) in enumerate(zip(TEXTS, WORDS, strict=True))
    ).encode(),
    ".csv": lambda: ("id,text\n" + "\n".join(f'{k},"{t}"' for k, t in enumerate(TEXTS))).encode(),
    ".tsv": lambda: ("id\ttext\n" + "\n".join(f"{k}\t{t[:9]}" for k, t in enumerate(TEXTS))).encode(),
    ".conllu": lambda: b"# newdoc\n" + b"".join(
        b"1-2\tdon't" + b"\t_" * 8
        + b"".join(b"\n%d\t%s\t_\tAUX" % (k, w) + b"\t_" * 6 for k, w in ((1, b"do"), (2, b"n't"))) + b"\n\n"
        for _ in range(3)
    ),
    ".parquet": parquet,
    ".warc": warc,
}  # fmt: skip
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
PIECES = (
    b"", b"\0", b"\r", b"\n", b"\r\n", b'"', b"'", b"\t", b",", b"{", b"[", b"]" * 40, b"[" * 5000, b"\xff",
    b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\u2028".encode(), b"\\ud800", b"1e999",
    b"9" * 5000, b"-1", b"null", b"NaN", b"a" * 3000, b"WARC/1.0\r\n", b"Content-Length: -5\r\n", b"PAR1",
    b"Content-Length: 99999999999\r\n", b"# newdoc\n", b"1-9\tx", b"\x1f\x8b", b"\xfd7zXZ\0", b"(\xb5/\xfd",
)  # fmt: skip
"""What is put into a file."""


@cache
def sample(format_: str, packing: str) -> bytes:
    """A whole file."""
    return PACKINGS[packing](SAMPLES[format_]())


def damage(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a few changed, put in, doubled, lost, or cut off."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(6):
            case 0 if at < len(made):
                made[at] = rng.randrange(256)
            case 1 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 2:
                del made[at : at + rng.choice([1, 8, 100])]
            case 3:
                made[at:at] = made[at : at + rng.choice([1, 30, 1000])]
            case 4:
                del made[at:]
            case _:
                made[at:at] = rng.choice(PIECES)
    return bytes(made)


def one(number: int, seed: int, folder: Path) -> tuple[str, str]:
    """Mutation ``number``; the kind of its file, and what became of it."""
    rng = random.Random(f"{seed}-{number}")
    format_, packing = rng.choice([*SAMPLES]), rng.choice([*PACKINGS])
    if rng.random() < 0.5:  # what is packed is damaged, and the package is whole
        content = PACKINGS[packing](damage(sample(format_, ""), rng))
    else:
        content = damage(sample(format_, packing), rng)
    name = f"a{format_}{packing}"
    source = str(folder / name)
    if rng.random() < 0.1:
        archive = folder / "a.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(name, content)
        archive.write_bytes(damage(archive.read_bytes(), rng))
        source = f"zip://{name}::file://{archive}"
    else:
        (folder / name).write_bytes(content)
    tagged = format_ in (".jsonl", ".parquet", ".conllu") and rng.random() < 0.3
    config = PrepareConfig.parse(
        {
            "sources": [source],
            "max_document_bytes": rng.choice([1000, 1_000_000]),
            "txt_documents": rng.choice(["auto", "lines", "blank_lines"]),
            "tagger": {"kind": "column" if tagged else "none"},
            **({"id_key": "id", "metadata_keys": ["deep"]} if format_ == ".jsonl" else {}),
        }
    )
    skipped = Skipped()
    try:
        sources = find_sources(config.sources, config.fields(), skipped)
        documents = [d for s in sources for d in s.documents(config.fields(), skipped)]
    except ChronomaskError as error:
        text = str(error)
        assert text.isprintable()
        assert "Traceback" not in text
        assert str(folder) in text, "it names no file"
        return format_, "refused"
    for document in documents:
        (document.id + document.text + "".join(map(str, document.metadata.values()))).encode()
        words = document.words
        if words is not None:
            bounds = zip(words.starts, words.ends, strict=True)
            assert all(0 <= a <= b <= len(document.text) for a, b in bounds)
    assert skipped.summary().isprintable()
    json.dumps(skipped.to_dict(), allow_nan=False).encode()
    return format_, "left something out" if skipped.reasons else "whole"


def fuzz(number: int, seed: int, folder: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """``number`` mutations: counts by format, and a report of each failure."""
    counts = {name: Counter[str]() for name in SAMPLES}
    failures = []
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile, of names that occur twice
        for n in range(number):
            try:
                format_, became = one(n, seed, folder)
            except Exception:
                format_, became = ".txt", "failed"
                failures.append(f"{n}, seed {seed}:\n{traceback.format_exc()}")
            counts[format_][became] += 1
    return counts, failures


if __name__ == "__main__":
    sys.exit(command(fuzz, 20_000))
