"""Tokenizers that are trained on a sample of the text: WordPiece, byte-level BPE and Unigram."""

from __future__ import annotations

import io
import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from chronomask.errors import DataError, need
from chronomask.prepare.tokenizer import TokenizerChoice

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

__all__ = ["ByteLevelBPE", "Unigram", "WordPiece"]

SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role and text of the special tokens of a trained tokenizer; ids follow this order."""

ALPHABET = 1000
"""Characters that a trained WordPiece keeps if the text has so many: the limit of BERT's trainer."""
_LONGEST_WORD = 100
"""Characters of the longest word that a WordPiece splits, as BERT's has it; a longer one is unknown."""
_LONGEST_RUN = 1000
"""The same where the text has many longer words: to split one takes the square of its length."""
_MANY_IN_RUNS = 0.001
"""Share of the characters in words longer than :data:`_LONGEST_WORD` that makes them words of the text."""
_SLICE = 1 << 16
"""Characters of a run without spaces that are looked at together."""
_MANY_CHANGED = 0.01
"""Share of the letters that stripping accents may change unnoticed."""


class _Trained(TokenizerChoice):
    """One that is trained, with the same special tokens whatever its kind."""

    def advise(self) -> str:
        """Another size, or another kind."""
        return (
            "Raise the size with --set tokenizer.vocab_size=NUMBER, or take --set "
            "tokenizer.kind=byte_level_bpe, to which no text is unknown"
        )

    @abstractmethod
    def train(self, sample: Iterable[str]) -> Tokenizer:
        """A tokenizer of the ``tokenizers`` library, the same on every run."""

    def save(self, sample: Iterable[str], row_length: int, folder: Path) -> None:
        """Train it, and save it as transformers opens it."""
        from transformers import PreTrainedTokenizerFast

        backend = self.train(sample)
        added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=row_length,
            **{f"{role}_token": added[text] for role, text in SPECIALS.items()},
        ).save_pretrained(str(folder))


class WordPiece(_Trained):
    """Train a WordPiece tokenizer as BERT's, specials [PAD] [UNK] [CLS] [SEP] [MASK].

    A word of more than 100 characters is unknown, as BERT's; of more than 1,000 where a thousandth of the
    text is in longer words, as in languages without spaces.
    """

    kind: Literal["wordpiece"] = "wordpiece"
    vocab_size: int = Field(default=16_384, ge=100, le=1_000_000)
    """Number of ids, special tokens included; a small corpus may give fewer."""
    lowercase: bool = True
    """Lower-case the text and strip accents before splitting it (BERT "uncased")."""
    character_coverage: float = Field(default=0.9999, gt=0.0, le=1.0)
    """Share of the text's characters that the alphabet is to cover; it keeps 1,000 characters at least.
    Never more than ``vocab_size`` has room for; a word with any other character is unknown."""

    def damage(self, texts: Iterable[str], *, english: bool = True) -> str | None:
        """Stripping accents takes Hangul apart, and the marks off kana and Indic letters; in languages other
        than English it makes one letter of two, such as ş and s.
        """
        if not self.lowercase:
            return None
        characters: Counter[str] = Counter()
        for text in texts:
            characters.update(text)
        letters = sum(number for c, number in characters.items() if c.isalpha())
        changed = sum(number for c, number in characters.items() if _is_changed(c, not english))
        if changed <= _MANY_CHANGED * letters:
            return None
        return (
            f"strips accents, which changes {100 * changed / max(letters, changed):.0f} % of the letters "
            "into others: add --set tokenizer.lowercase=false"
        )

    def advise(self) -> str:
        """Another size helps against unknown characters, but not against long words."""
        return (
            f"{super().advise()}: a word of more than {_LONGEST_WORD} characters, or {_LONGEST_RUN:,} where "
            "the text has many, is unknown at any size"
        )

    def train(self, sample: Iterable[str]) -> Tokenizer:
        """WordPiece as BERT's, the same on every run.

        The library's trainer numbers the continuation characters ("##a") in the order of a randomised
        hash map and breaks ties between merges by these numbers, so that two runs differ. Here
        every character is counted first and registered in sorted order.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        texts = [normalizer.normalize_str(text) for text in sample]
        everywhere, inside = _count_characters(texts)
        if not everywhere:
            raise DataError("there is no text to train a tokenizer on; check the sources")
        room = self.vocab_size - len(SPECIALS)
        common = _alphabet(everywhere, inside, self.character_coverage, room)
        continued = ["##" + c for c in sorted(common) if inside[c]]
        scratch = Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"]))
        scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=sorted(common),
            limit_alphabet=len(common),
            special_tokens=[*SPECIALS.values(), *continued],
            show_progress=False,
        )
        scratch.train_from_iterator(texts, trainer)

        model = models.WordPiece(
            scratch.get_vocab(),
            unk_token=SPECIALS["unk"],
            max_input_chars_per_word=_longest_word(texts),
        )
        backend = Tokenizer(model)
        backend.add_special_tokens(list(SPECIALS.values()))
        backend.normalizer = normalizer
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.post_processor = _template(backend)
        return backend


class ByteLevelBPE(_Trained):
    """Train a byte-level BPE tokenizer as RoBERTa's and ModernBERT's: no text is unknown to it."""

    kind: Literal["byte_level_bpe"] = "byte_level_bpe"
    vocab_size: int = Field(default=16_384, ge=300, le=1_000_000)
    """Number of ids, the 256 bytes and the special tokens included."""

    def train(self, sample: Iterable[str]) -> Tokenizer:
        """Byte-level BPE (Radford et al., 2019) with the special tokens placed as RoBERTa places them."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=_specials_beside_spaces(),
            show_progress=False,
        )
        backend.train_from_iterator(sample, trainer)
        backend.post_processor = _template(backend)
        return backend


_SPACE = "▁"
_LONGEST_LINE = 1 << 20
"""Bytes of a line that sentencepiece leaves out without a word."""


class Unigram(_Trained):
    """Train a Unigram tokenizer as ALBERT's, XLNet's and T5's: the likeliest split into pieces."""

    kind: Literal["unigram"] = "unigram"
    vocab_size: int = Field(default=16_384, ge=100, le=1_000_000)
    """Number of ids, special tokens included; a small corpus may give fewer."""
    lowercase: bool = False
    """Lower-case the text before splitting it."""

    def check(self) -> None:
        """Raises :class:`UsageError` without sentencepiece."""
        need("sentencepiece", "unigram", "tokenizer.kind=unigram")

    def train(self, sample: Iterable[str]) -> Tokenizer:
        """Unigram (Kudo, 2018), the same on every run.

        sentencepiece trains: the trainer of the ``tokenizers`` library gives other pieces on every run,
        because it sums and sorts in the order of randomised hash maps. Its pieces and their scores then
        become a tokenizer of that library. Raises :class:`DataError` where the sample has no text, or too
        little for its characters.
        """
        import sentencepiece
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        # The pre-tokenizer takes the space before a word into it, and no other white space.
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        lowercase = [normalizers.Lowercase()] if self.lowercase else []
        normalizer = normalizers.Sequence([normalizers.NFKC(), *lowercase, spaces])
        lines = [
            piece
            for text in sample
            for line in text.splitlines()
            if line.strip()
            for piece in _cut(normalizer.normalize_str(line))
        ]
        if not lines:
            raise DataError("there is no text to train a tokenizer on; check the sources")
        specials = list(SPECIALS.values())
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type="unigram",
                vocab_size=self.vocab_size - len(specials) + 1,  # its own <unk> is among the specials
                hard_vocab_limit=False,
                character_coverage=0.9995,
                normalization_rule_name="identity",
                num_threads=1,  # the sums of another number of threads give other scores
                max_sentence_length=_LONGEST_LINE,
                pad_id=-1, bos_id=-1, eos_id=-1, unk_id=0,
                minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise DataError(
                f"no Unigram tokenizer of {self.vocab_size:,} ids can be trained on this text: "
                f"{self._why_not(str(error))}"
            ) from None
        trained = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        pieces = [
            (trained.id_to_piece(number), trained.get_score(number))
            for number in range(1, trained.get_piece_size())
        ]
        vocabulary = [*((special, 0.0) for special in specials), *pieces]
        backend = Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=False))
        backend.add_special_tokens(_specials_beside_spaces())
        backend.normalizer = normalizer
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="always"
        )
        backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
        backend.post_processor = _template(backend)
        return backend

    def _why_not(self, answer: str) -> str:
        """What a refusal of sentencepiece means here, for its advice names options of its own."""
        sizes = _TOO_MANY_CHARACTERS.search(answer)
        if sizes is not None:
            least = self.vocab_size + int(sizes[2]) - int(sizes[1])
            return (
                f"each of its characters needs an id of its own; give at least --set "
                f"tokenizer.vocab_size={least}, or --set tokenizer.kind=byte_level_bpe, which any text fits"
            )
        if "all_chars_count" in answer:
            return f"it holds no character beside white space and {_SPACE!r}; check the sources"
        return f"sentencepiece says: {' '.join(answer.split())}"


_TOO_MANY_CHARACTERS = re.compile(r"smaller than required_chars\. (\d+) vs (\d+)")


def _is_changed(character: str, accents: bool) -> bool:
    """Whether stripping accents makes another letter of it: its marks, or it itself, are no accent, or
    ``accents`` count too.
    """
    script = unicodedata.name(character, "?").partition(" ")[0]
    if not accents and script in ("LATIN", "GREEK", "CYRILLIC", "COMBINING"):
        return False
    apart = unicodedata.normalize("NFD", character)
    return unicodedata.category(character) == "Mn" or (character.isalpha() and apart != character)


def _count_characters(texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each character is part of a word, and how often it continues one."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(text.split())
    everywhere: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for word, number in words.items():
        begins = True
        for character in word:
            everywhere[character] += number
            if _is_punctuation(character):  # the pre-tokenizer makes it a word of its own
                begins = True
                continue
            if not begins:
                inside[character] += number
            begins = False
    return everywhere, inside


def _longest_word(texts: Sequence[str]) -> int:
    """Characters of the longest word that is not to be unknown, by how much of the texts is in long ones."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    splits, many, in_long = BertPreTokenizer(), _MANY_IN_RUNS * sum(map(len, texts)), 0
    # Few are longer before punctuation is looked for, which takes its time.
    for run in (run for text in texts for run in text.split() if len(run) > _LONGEST_WORD):
        for begin in range(0, len(run), _SLICE):
            words = (word for word, _ in splits.pre_tokenize_str(run[begin : begin + _SLICE]))
            in_long += sum(len(word) for word in words if len(word) > _LONGEST_WORD)
            if in_long > many:
                return _LONGEST_RUN
    return _LONGEST_WORD


def _alphabet(
    everywhere: Counter[str], inside: Counter[str], coverage: float, room: int
) -> list[str]:
    """The characters to keep, the most frequent first: for ``coverage``, and :data:`ALPHABET` at least.

    A character is one entry, and one more if it also continues words (:func:`_count_characters`); all
    of them together are at most ``room`` entries.
    """
    ordered = sorted(everywhere, key=lambda c: (-everywhere[c], c))
    enough = coverage * sum(everywhere.values())
    kept: list[str] = []
    covered = 0
    for character in ordered:
        room -= 2 if inside[character] else 1
        if room < 0 or (len(kept) >= ALPHABET and covered >= enough):
            break
        kept.append(character)
        covered += everywhere[character]
    return kept


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return not character.isalnum() and character.isprintable() and character != " "
    return unicodedata.category(character).startswith("P")


def _cut(line: str) -> Iterator[str]:
    """The line in pieces short enough for sentencepiece, cut at spaces where there are any."""
    most = _LONGEST_LINE // 5  # characters, of four bytes at most
    while len(line.encode()) >= _LONGEST_LINE:
        end = line.rfind(" ", 1, most)
        end = most if end < 0 else end
        yield line[:end]
        line = line[end:].lstrip(" ")
    yield line


def _specials_beside_spaces() -> list[AddedToken]:
    """The special tokens of a tokenizer whose words begin with the space before them.

    [MASK] takes that space in, as RoBERTa's and ALBERT's do: left over, it would be a token of its own,
    and the model's answer would bring a second one.
    """
    from tokenizers import AddedToken

    mask = SPECIALS["mask"]
    return [AddedToken(text, lstrip=text == mask, special=True) for text in SPECIALS.values()]


def _template(backend: Tokenizer) -> Any:
    from tokenizers import processors

    cls, sep = SPECIALS["cls"], SPECIALS["sep"]
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
