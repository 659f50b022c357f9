import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomask import text_files
from chronomask.errors import DataError
from chronomask.text_files import lines_in, read_lines, read_text, text_of


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_with_each_of_three_ends_and_nothing_else(
    tmp_path: Path, mark: bytes, pack: Callable[[bytes], bytes]
) -> None:
    end = {gzip.compress: ".gz", lzma.compress: ".xz"}.get(pack, "")
    path = tmp_path / f"text.txt{end}"
    path.write_bytes(pack(mark + "a\r\nb\rc\u2028d\x0ce\x85\n\nlast".encode()))
    assert list(read_lines(path)) == ["a", "b", "c\u2028d\x0ce\x85", "", "last"]
    assert read_text(path) == "a\r\nb\rc\u2028d\x0ce\x85\n\nlast"


LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=6)


@given(st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n", "\r"])), max_size=12))
def test_any_lines_come_back(lines: list[tuple[str, str]]) -> None:
    # A lone CR before a line that is empty and ends with LF would be one CR LF.
    lines = [(line or "x", end) for line, end in lines]
    content = "".join(line + end for line, end in lines).encode()
    texts = [line for line, _ in lines]
    if texts:
        texts[0] = texts[0].removeprefix("\ufeff")
    assert list(lines_in(io.BytesIO(content), "x")) == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\ncaf\xe9 x\n", "x.txt, line 2: byte 0xe9 is not UTF-8"),
        (b"ab\rq\r\n\xc3", "x.txt, line 3: byte 0xc3 is not UTF-8"),
        (b"\xef\xbb\xbf\n\xa0", "x.txt, line 2: byte 0xa0 is not UTF-8"),
        ("héé".encode("utf-16"), r"x.txt is UTF-16, .*iconv -f UTF-16 -t UTF-8"),
        ("h".encode("utf-32"), "x.txt is UTF-32, by its byte order mark"),
    ],
)
def test_other_encodings_are_refused_by_line_or_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    for read in (lambda path: list(read_lines(path)), read_text):
        with pytest.raises(DataError, match=message):
            read(tmp_path / "x.txt")
    with pytest.raises(DataError, match=message):
        text_of(content, "x.txt")


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"gone\.txt cannot be read: No such file"):
        read_text(tmp_path / "gone.txt")
    packed = gzip.compress(b"line\n" * 1000)
    (tmp_path / "cut.txt.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"cut\.txt\.gz is damaged or cut short"):
        list(read_lines(tmp_path / "cut.txt.gz"))
    (tmp_path / "whole.txt.gz").write_bytes(packed)
    monkeypatch.setattr(text_files, "UNPACKED_LIMIT", 4999)
    for read in (lambda path: list(read_lines(path)), read_text):
        with pytest.raises(DataError, match=r"unpacks to more than 4,999 bytes: if that is right"):
            read(tmp_path / "whole.txt.gz")
    monkeypatch.setattr(text_files, "UNPACKED_LIMIT", 5000)
    assert len(read_text(tmp_path / "whole.txt.gz")) == 5000
    (tmp_path / "plain.txt").write_bytes(b"x" * 9000)  # its size is there to see
    assert len(read_text(tmp_path / "plain.txt")) == 9000


def test_a_line_is_read_up_to_the_limit() -> None:
    def lines(limit: int) -> list[str]:
        return list(lines_in(io.BytesIO(b"ab\nc\xc3\xa9de\n"), "x", limit))

    assert lines(5) == ["ab", "céde"]
    with pytest.raises(DataError, match=r"x, line 2: 5 bytes; at most 4 are read"):
        lines(4)
