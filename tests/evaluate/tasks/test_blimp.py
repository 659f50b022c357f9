"""BLiMP scores against a loop over masked copies, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.pseudo import PseudoLikelihood, encode_sentences
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.blimp import BlimpTask, contents, sha256_of_contents
from tests.support.corpus import made_up_text
from tests.support.scored_by_hand import by_hand
from tests.support.tiny_models import save_tiny

PAIRS = 8


def paradigm(uid: str, term: str, first: int) -> str:
    words = " ".join(made_up_text(4)).replace(".", "").split()
    long = "".join(words[:4]).lower()  # a word of several pieces
    lines = []
    for number in range(PAIRS):
        at = first + number
        good = " ".join(words[at : at + 3 + number % 4]) + f", {long}."
        bad = good if number == 3 else " ".join(reversed(good.split()))
        lines.append(
            json.dumps(
                {
                    "sentence_good": good,
                    "sentence_bad": bad,
                    "field": "syntax",
                    "linguistics_term": term,
                    "UID": uid,
                    "pairID": str(number),
                }
            )
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blimp") / "blimp"
    folder.mkdir()
    (folder / "b_second.jsonl").write_text(paradigm("b_second", "binding", 5))
    (folder / "a_first.jsonl").write_text(paradigm("a_first", "agreement", 0))
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
    (tmp_path / "x.jsonl").write_text(paradigm("x", "y", 0).splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        evaluate(find_subject(str(model)), [BlimpTask()], tmp_path, [0], tmp_path / "out")


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


def test_a_sentence_longer_than_the_model_is_named(
    tmp_path: Path, tiny_tokenizer: Path, data: Path
) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer, max_position_embeddings=8)
    with pytest.raises(UsageError, match="room for 8 tokens"):
        BlimpTask().check(find_subject(str(tmp_path / "model")), data)
