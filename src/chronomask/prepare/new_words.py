"""New vocabulary: words of one's own text become tokens of a tokenizer that cuts them into pieces.

The words are those that the tokenizer's own pre-tokenizer cuts, with its mark of the space before them.
They become entries of its model like any other, and not "added tokens": these are looked for before the
text is cut into words, and would split other words. Ids that are there stay what they are.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from chronomask.errors import DataError, UsageError
from chronomask.model.open import open_tokenizer
from chronomask.prepare.tokenizer import TokenizerChoice, TokenizerFolder
from chronomask.storage import write_json
from chronomask.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["NEW_WORDS", "ExtendedFolder", "NewWord", "choose_words", "count_words", "with_words"]

logger = logging.getLogger(__name__)

NEW_WORDS = "new_words.json"
"""File beside an extended tokenizer: what was added, and why."""
_WINS_BY = 0.01
"""How far a new Unigram piece scores above those it replaces, in nats, for each piece that it saves: so a
word also wins over a new word that it begins with and the rest."""


class ExtendedFolder(TokenizerChoice):
    """An existing fast tokenizer with words of the text as new tokens."""

    kind: Literal["extended"] = "extended"
    path: str
    """Folder of a model or tokenizer, or the name of a model on the hub; it must have a mask token."""
    new_words: int = Field(default=1000, ge=1, le=1_000_000)
    """How many words to add at most: those that save most tokens, their count × the pieces saved."""
    min_count: int = Field(default=10, ge=1)
    """How often a word must occur in the sample; rarer words would hardly be learnt."""

    needs_text = True

    @property
    def _given(self) -> TokenizerFolder:
        return TokenizerFolder(path=self.path)

    def announce(self) -> str:
        """Words are added to it."""
        return f"adding words of the text to the tokenizer of {self.path}"

    def check(self) -> None:
        """Raises :class:`UsageError` as that of the given one does, and where it cuts no words."""
        self._given.check()
        file = self._given.folder() / "tokenizer.json"
        _check_model(json.loads(file.read_text(encoding="utf-8")), self.path)

    def state(self) -> list[dict[str, Any]]:
        """Its file."""
        return self._given.state()

    def save(self, sample: Iterable[str], row_length: int, folder: Path) -> None:
        """Save it with its new words, and what they are as :data:`NEW_WORDS`.

        Raises :class:`UsageError` as :class:`TokenizerFolder` does, :class:`DataError` where no word of the
        sample qualifies.
        """
        self._given.save(sample, row_length, folder)
        backend: Any = open_tokenizer(folder).backend_tokenizer
        _check_model(json.loads(backend.to_str()), self.path)
        counts = count_words(backend, sample)
        chosen = choose_words(backend, counts, self.new_words, self.min_count)
        if not chosen:
            raise DataError(
                f"no word of the text is cut into pieces and occurs {self.min_count} times, so "
                f"{self.path} gets no new words: give more text, or a lower number (tokenizer.min_count in a "
                "config, --min-count in a command, min_count= in Python), or do without"
            )
        if len(chosen) < self.new_words:
            logger.warning(
                "%s new words instead of %s: no others are cut into pieces and occur %d times",
                f"{len(chosen):,}", f"{self.new_words:,}", self.min_count,
            )  # fmt: skip
        _save_with(folder, chosen)
        extended: Any = open_tokenizer(folder).backend_tokenizer
        write_json(
            folder / NEW_WORDS,
            {
                "tokens_per_word": {
                    "before": tokens_per_word(backend, counts),
                    "after": tokens_per_word(extended, counts),
                },
                "words": {
                    new.token: {"count": new.count, "pieces": list(new.pieces)} for new in chosen
                },
            },
        )


@dataclass(frozen=True, slots=True)
class NewWord:
    """A word to add: its text as an entry of the vocabulary, how often it occurs, its pieces until now."""

    token: str
    count: int
    pieces: tuple[str, ...]


def count_words(backend: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, written as an entry of the vocabulary ("Ġheart", "▁heart").

    A word is what the pre-tokenizer cuts, if it is letters. WordPiece and Unigram match beginnings, so for
    them it may go on with others, as in "▁heart,".
    """
    normalizer: Any = backend.normalizer
    normalise = normalizer.normalize_str if normalizer else str
    cut: Any = backend.pre_tokenizer
    counts: Counter[str] = Counter()
    letters: dict[str, tuple[int, int]] = {}
    for text in texts:
        normal = normalise(text)
        for piece, (start, end) in cut.pre_tokenize_str(normal):
            counts[piece] += 1
            if piece not in letters:
                surface = normal[start:end].strip()
                letters[piece] = (_num_letters(surface), len(surface))
    whole_alone = _kind_of_model(backend) == "BPE"
    words: Counter[str] = Counter()
    for piece, count in counts.items():
        num, length = letters[piece]
        if num == length > 0 or (num > 0 and not whole_alone):
            words[piece[: len(piece) - (length - num)]] += count
    return words


def choose_words(
    backend: Tokenizer, counts: Mapping[str, int], most: int, min_count: int
) -> list[NewWord]:
    """The ``most`` words with the largest count × (pieces − 1), the alphabet deciding between equal ones.

    Words with characters that the tokenizer does not know are left out: they have no pieces to begin from.
    """
    values = json.loads(backend.to_str())["model"]
    mark = values.get("continuing_subword_prefix") or ""
    unknown = values.get("unk_id", backend.token_to_id(values.get("unk_token") or ""))
    model: Any = backend.model
    found = []
    for word, count in counts.items():
        if count < min_count or backend.token_to_id(word) is not None:
            continue
        # None at all where the model leaves out characters that it does not know.
        pieces = model.tokenize(word)
        texts = tuple(piece.value for piece in pieces)
        # Bytes that stand for an unknown character do not spell the word.
        spelled = "".join((*texts[:1], *(text.removeprefix(mark) for text in texts[1:])))
        if len(pieces) > 1 and spelled == word and unknown not in [piece.id for piece in pieces]:
            found.append(NewWord(word, count, texts))
    found.sort(key=lambda new: (-new.count * (len(new.pieces) - 1), new.token))
    return found[:most]


def tokens_per_word(backend: Tokenizer, counts: Mapping[str, int]) -> float:
    """Mean number of tokens over the words of :func:`count_words`."""
    total = sum(count * len(_pieces(backend, word)) for word, count in counts.items())
    return total / sum(counts.values())


def with_words(backend: Tokenizer, words: Sequence[NewWord]) -> dict[str, Any]:
    """The tokenizer as the values of ``tokenizer.json``, the words having the ids after its largest.

    WordPiece takes the longest entry, and so the whole word. BPE is told to look a word up before it
    merges (``ignore_merges``). A Unigram word scores a little more than its pieces together, the least
    that lets it win, so that other words are cut as before.
    """
    values = json.loads(backend.to_str())
    first = vocabulary_size(backend)
    model = values["model"]
    # A library that reads the file numbers added tokens after the model's entries, unless they are entries.
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    if model["type"] != "Unigram":
        model["vocab"] |= {token: number for number, token in added.items()}
        model["vocab"] |= {new.token: first + k for k, new in enumerate(words)}
        if model["type"] == "BPE":
            model["ignore_merges"] = True
        return values
    entries = model["vocab"]
    score = dict(map(tuple, entries))
    # Ids of a Unigram are places in its list. Unknown characters score 10 below the lowest, which stays.
    lowest = min(score.values())
    entries += [[added.get(k, f"[unused{k}]"), lowest] for k in range(len(entries), first)]
    for new in words:
        gain = _WINS_BY * (len(new.pieces) - 1)
        entries.append([new.token, sum(score[piece] for piece in new.pieces) + gain])
    return values


def _save_with(folder: Path, words: Sequence[NewWord]) -> None:
    """Give the tokenizer in ``folder`` new words; raises UsageError where it does not take them."""
    from tokenizers import Tokenizer

    tokenizer: Any = open_tokenizer(folder)
    first = vocabulary_size(tokenizer)
    expected = tokenizer.get_vocab() | {new.token: first + k for k, new in enumerate(words)}
    values = with_words(tokenizer.backend_tokenizer, words)
    Tokenizer.from_str(json.dumps(values)).save(str(folder / "tokenizer.json"))
    if _takes(folder, expected, words):
        return
    # The class builds a tokenizer of its own from the entries, without ignore_merges. The base class
    # takes the file as it is.
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = tokenizer.model_input_names
    write_json(settings_file, settings)
    if not _takes(folder, expected, words):
        raise UsageError(
            f"a tokenizer of class {type(tokenizer).__name__} does not keep new words as tokens: do "
            "without new words"
        )


def _takes(folder: Path, expected: Mapping[str, int], words: Sequence[NewWord]) -> bool:
    """Whether the tokenizer that transformers opens has these entries, and each word as one token."""
    tokenizer: Any = open_tokenizer(folder, as_class=True)
    backend = tokenizer.backend_tokenizer
    return tokenizer.get_vocab() == expected and all(
        _pieces(backend, new.token) == (new.token,) for new in words
    )


def _check_model(values: Mapping[str, Any], name: str) -> None:
    """Raise UsageError for a ``tokenizer.json`` whose words cannot become tokens."""
    model = values["model"]
    kind = model.get("type")
    why = None
    if kind not in ("WordPiece", "BPE", "Unigram"):
        why = f"its model is {kind}, which has no pieces"
    elif not values.get("pre_tokenizer"):
        why = "it cuts no words before it looks for pieces"
    elif kind == "BPE" and (
        model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    ):
        why = "its pieces are marked by their place in the word"
    if why is not None:
        raise UsageError(
            f"the tokenizer of {name} cannot be given new words: {why}. WordPiece, byte-level BPE and "
            "Unigram can; do without new words"
        )


def _kind_of_model(backend: Tokenizer) -> str:
    return type(backend.model).__name__


def _pieces(backend: Tokenizer, word: str) -> tuple[str, ...]:
    model: Any = backend.model
    return tuple(token.value for token in model.tokenize(word))


def _num_letters(text: str) -> int:
    """How many characters at the beginning are letters, or marks on them."""
    for k, character in enumerate(text):
        if unicodedata.category(character)[0] not in "LM":
            return k
    return len(text)
