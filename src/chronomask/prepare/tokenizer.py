"""Tokenizers: train one on a sample of the text, or take a given one; both end as a saved folder.

May enter: kinds of tokenizers and what the rest of the room must know of one. Workers need the
``tokenizers`` library alone; transformers is imported only to save and load folders.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.errors import DataError, UsageError
from chronomask.model.open import open_tokenizer
from chronomask.prepare.config import (
    ByteLevelBPE,
    TokenizerChoice,
    TokenizerFolder,
    Unigram,
    WordPiece,
)
from chronomask.prepare.unigram import train_unigram
from chronomask.storage import file_sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SavedTokenizer", "build_tokenizer", "find_tokenizer", "load_backend", "open_saved"]

SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role and text of the special tokens of a trained tokenizer; ids follow this order."""

ALPHABET = 1000
"""Characters a trained WordPiece keeps, the most frequent first (BERT's own limit)."""


@dataclass(frozen=True, slots=True)
class SavedTokenizer:
    """A tokenizer folder and the ids that packing needs; ``None`` where it has no such token."""

    folder: Path
    sha256: str
    vocab_size: int
    pad_id: int
    mask_id: int
    cls_id: int | None
    sep_id: int | None
    special_ids: tuple[int, ...]
    """Every special id, the unknown token's included: none of them is ever masked."""


def build_tokenizer(
    choice: TokenizerChoice, sample: Iterable[str], row_length: int, folder: Path
) -> SavedTokenizer:
    """Train or load the chosen tokenizer and save it to ``folder`` as a fast tokenizer.

    Raises :class:`UsageError` where a given folder is no fast tokenizer with a mask token,
    :class:`DataError` where the sample has no words.
    """
    from transformers import PreTrainedTokenizerFast

    if isinstance(choice, TokenizerFolder):
        tokenizer = _load_folder(choice.path)
    else:
        if isinstance(choice, WordPiece):
            backend = train_wordpiece(choice, sample)
        elif isinstance(choice, Unigram):
            backend = train_unigram(choice, sample, list(SPECIALS.values()))
            backend.post_processor = _template(backend)
        else:
            backend = train_byte_level_bpe(choice, sample)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=row_length,
            **{f"{role}_token": text for role, text in SPECIALS.items()},
        )
    tokenizer.save_pretrained(str(folder))
    return open_saved(folder)


def open_saved(folder: Path) -> SavedTokenizer:
    """What :func:`build_tokenizer` saved in ``folder``."""
    tokenizer: Any = open_tokenizer(folder)
    cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    return SavedTokenizer(
        folder=folder,
        sha256=file_sha256(folder / "tokenizer.json"),
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        mask_id=tokenizer.mask_token_id,
        cls_id=tokenizer.bos_token_id if cls_id is None else cls_id,
        sep_id=tokenizer.eos_token_id if sep_id is None else sep_id,
        special_ids=tuple(sorted(tokenizer.all_special_ids)),
    )


def load_backend(folder: Path) -> Tokenizer:
    """The tokenizer of a saved folder, for encoding documents: no padding, no truncation, and a text
    that spells a special token ("[MASK]") is ordinary text.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def find_tokenizer(path: str) -> Path:
    """The ``tokenizer.json`` of a given folder; raises :class:`UsageError` where there is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(
            f"tokenizer folder {path} does not exist; give a folder with tokenizer.json, or train one "
            "with --set tokenizer.kind=wordpiece"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(
            f"tokenizer folder {path} has no tokenizer.json: only fast tokenizers tell the character "
            "offsets that words need; save one with a fast class first"
        )
    return folder / "tokenizer.json"


def _load_folder(path: str) -> Any:
    find_tokenizer(path)
    tokenizer: Any = open_tokenizer(path)
    if not tokenizer.is_fast:
        raise UsageError(f"tokenizer folder {path} opens as a slow tokenizer; a fast one is needed")
    for role in ("mask", "pad"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise UsageError(
                f"tokenizer folder {path} has no {role} token, which masked language models need; "
                f"add one with tokenizer.add_special_tokens({{'{role}_token': …}}) and save it again"
            )
    return tokenizer


def train_byte_level_bpe(choice: ByteLevelBPE, sample: Iterable[str]) -> Tokenizer:
    """Byte-level BPE (Radford et al., 2019) with the special tokens placed as RoBERTa places them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=choice.vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIALS.values()),
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    backend.post_processor = _template(backend)
    return backend


def train_wordpiece(choice: WordPiece, sample: Iterable[str]) -> Tokenizer:
    """WordPiece as BERT's, the same on every run.

    The library's trainer numbers the continuation characters ("##a") in the order of a randomised
    hash map and breaks ties between merges by these numbers, so that two runs differ. Here
    every character is counted first and registered in sorted order.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=choice.lowercase)
    texts = [normalizer.normalize_str(text) for text in sample]
    everywhere, inside = _count_characters(texts)
    if not everywhere:
        raise DataError("there is no text to train a tokenizer on; check the sources")
    common = sorted(everywhere, key=lambda c: (-everywhere[c], c))[:ALPHABET]
    continued = ["##" + c for c in sorted(common) if inside[c]]
    scratch = Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"]))
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=choice.vocab_size,
        initial_alphabet=sorted(common),
        limit_alphabet=len(common),
        special_tokens=[*SPECIALS.values(), *continued],
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)

    model = models.WordPiece(scratch.get_vocab(), unk_token=SPECIALS["unk"])
    backend = Tokenizer(model)
    backend.add_special_tokens(list(SPECIALS.values()))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = _template(backend)
    return backend


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


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return not character.isalnum() and character.isprintable() and character != " "
    return unicodedata.category(character).startswith("P")


def _template(backend: Tokenizer) -> Any:
    from tokenizers import processors

    cls, sep = SPECIALS["cls"], SPECIALS["sep"]
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
