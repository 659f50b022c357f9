"""BLiMP scores against a loop over masked copies, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.evaluate import jsonl_files
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.pseudo import PseudoLikelihood, encode_sentences
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.blimp import BlimpTask, contents, read_pairs, sha256_of_contents
from tests.support.corpus import made_up_text
from tests.support.scored_by_hand import by_hand
from tests.support.task_files import paradigm
from tests.support.tiny_models import save_tiny

PAIRS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blimp") / "blimp"
    folder.mkdir()
    (folder / "b_second.jsonl").write_text(paradigm("b_second", "binding", 5, PAIRS))
    (folder / "a_first.jsonl").write_text(paradigm("a_first", "agreement", 0, PAIRS))
    return folder.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, tiny_tokenizer)
    return folder


@pytest.mark.parametrize("score", ["within_word_l2r", "original"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_margins_are_those_of_one_copy_at_a_time(
    tmp_path: Path, tiny_tokenizer: Path, data: Path, score: str, model_type: str
) -> None:
    save_tiny(tmp_path, tiny_tokenizer, model_type)
    task = BlimpTask(PseudoLikelihood.parse({"score": score, "batch_tokens": 200}))
    found = task.run(find_subject(str(tmp_path)), data, 0, False)
    pairs = [
        json.loads(line)
        for name in ("a_first", "b_second")
        for line in (data / "blimp" / f"{name}.jsonl").read_text().splitlines()
    ]
    expected = [
        by_hand(tmp_path, p["sentence_good"], score) - by_hand(tmp_path, p["sentence_bad"], score)
        for p in pairs
    ]
    np.testing.assert_allclose(found.examples["margin"], expected, atol=2e-4)
    correct = [0.5 if p["sentence_good"] == p["sentence_bad"] else float(e > 0)
               for p, e in zip(pairs, expected, strict=True)]  # fmt: skip
    assert found.examples["correct"].tolist() == correct
    assert found.metrics["accuracy"] == np.mean(correct)
    assert found.details["paradigm/a_first"] == np.mean(correct[:PAIRS])
    assert found.details["term/binding"] == np.mean(correct[PAIRS:])
    assert found.details["field/syntax"] == np.mean(correct)
    assert found.num_examples["pairs"] == 2 * PAIRS


def test_the_two_scores_differ_where_words_have_several_pieces(model: Path, data: Path) -> None:
    subject = find_subject(str(model))
    margins = [
        BlimpTask(PseudoLikelihood.parse({"score": score}))
        .run(subject, data, 0, False)
        .examples["margin"]
        for score in ("within_word_l2r", "original")
    ]
    assert np.abs(margins[0] - margins[1]).max() > 0.01


def test_a_text_too_long_for_the_model_is_cut_in_full(model: Path) -> None:
    tokenizer = find_subject(str(model)).tokenizer
    text = " ".join(made_up_text(5))
    whole, _ = encode_sentences(tokenizer, [text], 10_000, "within_word_l2r")
    cut, source = encode_sentences(tokenizer, ["a", text], 20, "within_word_l2r")
    assert cut.num_scored[source == 1].sum() == whole.num_scored.sum()
    assert np.diff(cut.bounds).max() <= 20
    assert (source == 1).sum() > 3


def archives(folder: Path, files: dict[str, bytes]) -> list[Path]:
    made = []
    for suffix, mode in ((".tar.xz", "w:xz"), (".tar.gz", "w:gz")):
        made.append(folder / f"blimp{suffix}")
        with tarfile.open(made[-1], mode) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"data/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    made.append(folder / "blimp.zip")
    with zipfile.ZipFile(made[-1], "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, ".hidden.jsonl": b"x", "README.md": b"x"}.items():
            archive.writestr(f"data/{name}", content)
    return made


def test_a_folder_and_its_archives_are_the_same_data(tmp_path: Path, data: Path) -> None:
    files = contents(data)
    assert list(files) == ["a_first.jsonl", "b_second.jsonl"]
    for archive in archives(tmp_path, files):
        assert contents(archive) == files
        assert sha256_of_contents(contents(archive)) == BlimpTask().data_sha256(data)


def test_a_folder_is_read_up_to_a_bound(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(map(len, contents(data).values()))
    monkeypatch.setattr(jsonl_files, "FOLDER_LIMIT", size)
    assert sum(map(len, contents(data).values())) == size
    monkeypatch.setattr(jsonl_files, "FOLDER_LIMIT", size - 1)
    with pytest.raises(
        DataError, match=r"blimp have more than [\d,]+ bytes: name a folder with .* BLiMP"
    ):
        contents(data)


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".zip"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_truncated_archive_is_refused(
    tmp_path: Path, data: Path, suffix: str, share: float
) -> None:
    random = np.random.default_rng(0).integers(32, 126, 40_000, np.uint8).tobytes()  # no good zip
    files = {**contents(data), "c_third.jsonl": random}
    for archive in archives(tmp_path, files):
        if archive.name.endswith(suffix):
            content = archive.read_bytes()
            archive.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(DataError, match="damaged or cut short"):
                contents(archive)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence_good": "a", "UID": "x"}', "x.jsonl, line 2 lacks sentence_bad, field"),
        ('{"sentence_good": "a", "sent', "x.jsonl, line 2 is not JSON"),
        ("[]", "x.jsonl, line 2 is not a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, model: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(paradigm("x", "y", 0, 1).splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        evaluate(find_subject(str(model)), [BlimpTask()], tmp_path, [0], tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"sentence_good": "caf\xe9"}', "x.jsonl, line 2: byte 0xe9 is not UTF-8"),
        (b'{"a": "\\ud800"}', "x.jsonl, line 2 lacks sentence_good"),
        (b"[" * 100_000, "x.jsonl, line 2 is nested too deeply"),
        (b"7" * 10_000, "x.jsonl, line 2 is not JSON"),
    ],
)
def test_odd_bytes_are_refused_by_line(tmp_path: Path, line: bytes, message: str) -> None:
    good = paradigm("x", "y", 0, 1).encode()
    (tmp_path / "x.jsonl").write_bytes(good + line + b"\n")
    with pytest.raises(DataError, match=f"^in {re.escape(str(tmp_path))}: {message}"):
        BlimpTask().data_sha256(tmp_path)


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    pair = json.loads(paradigm("x", "y", 0, 1))
    (tmp_path / "x.jsonl").write_text(json.dumps(pair | {"sentence_bad": "a \ud800 b"}))
    with pytest.raises(DataError, match=r"x\.jsonl, line 1: '\\ud800' is half of a character"):
        BlimpTask().data_sha256(tmp_path)


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_mark_change_nothing(tmp_path: Path, ends: bytes, mark: bytes) -> None:
    plain = paradigm("x", "y", 0, 3).replace("syntax", "syn\u2028tax").encode()
    pairs = read_pairs({"x.jsonl": mark + plain.replace(b"\n", ends)})
    assert pairs == read_pairs({"x.jsonl": plain})
    assert len(pairs) == 3


def test_utf_16_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(paradigm("x", "y", 0, 1).encode("utf-16"))
    with pytest.raises(DataError, match=r"x\.jsonl is UTF-16, by its byte order mark"):
        BlimpTask().data_sha256(tmp_path)


def test_files_of_one_name_are_refused_by_their_places(tmp_path: Path) -> None:
    files = {"one/x.jsonl": paradigm("x", "y", 0, 2), "two/x.jsonl": paradigm("x", "y", 5, 2)}
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True)
        (tmp_path / "folder" / name).write_text(content)
    packed = archives(tmp_path, {name: content.encode() for name, content in files.items()})
    for place in (tmp_path / "folder", *packed):
        with pytest.raises(
            DataError, match=r"called x\.jsonl \(\S*one/x\.jsonl and \S*two/x\.jsonl\)"
        ):
            contents(place)
    (tmp_path / "folder" / "two" / "x.jsonl").rename(tmp_path / "folder" / "two" / "z.jsonl")
    assert list(contents(tmp_path / "folder")) == ["x.jsonl", "z.jsonl"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(paradigm("x", "y", 0, 1))
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".checkpoints" / "x.jsonl").write_text("older")
    assert list(contents(tmp_path)) == ["x.jsonl"]


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    *_, packed = archives(tmp_path, {"x.jsonl": b"{}"})
    content = bytearray(packed.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # its flags, in both headers
        content[content.index(signature) + at] |= 1
    packed.write_bytes(content)
    with pytest.raises(
        DataError, match=r"data/x\.jsonl is encrypted: unpack it and name the folder"
    ):
        contents(packed)


def test_a_zip_of_a_rare_method_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "blimp.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.jsonl", "{}")
    with pytest.raises(DataError, match=r"x\.jsonl is compressed by another method than deflate"):
        contents(tmp_path)


def test_what_is_no_archive_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "blimp.rar").touch()
    with pytest.raises(
        UsageError, match=r"blimp\.rar is not an archive of BLiMP: its name must end in"
    ):
        contents(tmp_path / "blimp.rar")


_BOMB = 400_000_000
"""Bytes that a few hundred kilobytes unpack to."""
_READ_AND_MEASURE = """
import sys
from pathlib import Path
from chronomask.errors import DataError
from chronomask.evaluate.tasks.blimp import contents, read_pairs

def most():  # kilobytes resident at once
    return int(next(l for l in open("/proc/self/status") if "VmHWM" in l).split()[1])

before = most()
try:
    read_pairs(contents(Path(sys.argv[1])))
except DataError as error:
    print((most() - before) * 1024, error)
"""


class _Blanks(io.RawIOBase):
    """So many line ends, made while they are read."""

    def __init__(self) -> None:
        self.left = _BOMB

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.left)
        buffer[:size] = b"\n" * size
        self.left -= size
        return size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".zip", ".longname.tar.gz"])
def test_a_bomb_is_refused_in_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"blimp{suffix}"
    if suffix == ".zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.jsonl", "w", force_zip64=True) as file,
        ):
            shutil.copyfileobj(_Blanks(), file, 1 << 20)
    elif suffix == ".longname.tar.gz":  # a name as long as a memory
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, _BOMB
        with gzip.open(path, "wb", 1) as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            shutil.copyfileobj(_Blanks(), file, 1 << 20)
    else:
        kind = suffix.removeprefix(".tar.")
        options = {"preset": 0} if kind == "xz" else {"compresslevel": 1}
        with tarfile.open(path, f"w:{kind}", **options) as archive:
            entry = tarfile.TarInfo("x.jsonl")
            entry.size = _BOMB
            archive.addfile(entry, io.BufferedReader(_Blanks()))
    command = [sys.executable, "-c", _READ_AND_MEASURE, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown, _, message = printed.partition(" ")
    assert "unpacks to more than 80,000,000 bytes" in message
    assert "unpack it and name the folder" in message
    assert int(grown) < 200_000_000


def test_no_blimp_is_no_blimp(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.jsonl file and no archive"):
        contents(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        BlimpTask().data_sha256(tmp_path)


def test_a_model_without_a_head_is_refused_before_any_work(
    tmp_path: Path, tiny_tokenizer: Path, data: Path
) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer, head=False)
    with pytest.raises(UsageError, match="no masked-language-model head"):
        BlimpTask().check(find_subject(str(tmp_path / "model")), data)


def test_a_sentence_longer_than_the_model_is_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    lines = paradigm("a", "agreement", 0, PAIRS).splitlines()
    pair = json.loads(lines[4])
    pair["sentence_good"] = " ".join(20 * pair["sentence_good"].split())
    lines[4] = json.dumps(pair)
    (tmp_path / "blimp").mkdir()
    (tmp_path / "blimp" / "a.jsonl").write_text("\n".join(lines) + "\n")
    save_tiny(tmp_path / "model", tiny_tokenizer, max_position_embeddings=64)
    beginning = re.escape(pair["sentence_good"][:20])
    with pytest.raises(UsageError, match=f"positions for 64 tokens, .* sentence '{beginning}"):
        BlimpTask().check(find_subject(str(tmp_path / "model")), tmp_path)


def test_a_task_that_is_used_again_measures_what_is_there_now(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """Other pairs, and then another tokenizer, in the same folders."""
    save_tiny(tmp_path / "model", tiny_tokenizer)
    (tmp_path / "a.jsonl").write_text(paradigm("a", "agreement", 0, 4))
    task = BlimpTask()

    def margins(task: BlimpTask, out: str) -> list[float]:
        (found,) = evaluate(
            str(tmp_path / "model"), [task], tmp_path, out=tmp_path / out, progress=False
        )
        return found.examples["margin"].tolist()

    before = margins(task, "1")
    (tmp_path / "a.jsonl").write_text(paradigm("a", "agreement", 9, 6))
    after = margins(task, "2")
    assert len(after) == 6
    assert after == margins(BlimpTask(), "3")
    file = tmp_path / "model" / "tokenizer.json"
    values = json.loads(file.read_text())
    values["normalizer"] = {"type": "Lowercase"} if values["normalizer"] is None else None
    file.write_text(json.dumps(values))
    other = margins(task, "4")
    assert other == margins(BlimpTask(), "5")
    assert len(before) == 4
