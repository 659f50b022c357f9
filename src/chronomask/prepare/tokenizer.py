"""Tokenizers: one is trained on a sample of the text, or a given one is taken; both end as a saved folder.

Those that are trained are in :mod:`chronomask.prepare.trained_tokenizer`. Workers need the ``tokenizers``
library alone; transformers is imported only to save and load folders.
"""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from chronomask.config import Alternative, kind_of
from chronomask.errors import UsageError, shown
from chronomask.folders import what_it_is
from chronomask.model.open import download, is_hub_name, open_tokenizer, snapshot_within
from chronomask.prepare.read.files import file_state
from chronomask.storage import file_sha256, read_object
from chronomask.vocabulary import need_role, other_roles, special_ids, vocabulary_size

__all__ = ["SavedTokenizer", "TokenizerChoice", "TokenizerFolder", "open_saved"]

_SPECIAL = re.compile(r"\[.*\]|<.*>")
_MANY_CHANGED = 0.01
"""Share of a vocabulary's entries that a setting may put out of reach unnoticed."""
MOST_IDS = 1 << 24
"""Ids that a given tokenizer may span: a model needs a row of weights for each."""


@dataclass(frozen=True, slots=True)
class SavedTokenizer:
    """A tokenizer folder and the ids that packing needs; ``None`` where it has no such token."""

    folder: Path
    sha256: str
    vocab_size: int
    """Every id is below it; see :func:`chronomask.vocabulary.vocabulary_size`."""
    pad_id: int
    cls_id: int | None
    sep_id: int | None
    special_ids: tuple[int, ...]
    """Every special id, the unknown token's included: none of them is ever masked."""


class TokenizerChoice(Alternative):
    """How text becomes tokens."""

    needs_text: ClassVar[bool] = True
    """Whether it is trained, so that the text must be there first."""

    def check(self) -> None:
        """Raises :class:`UsageError`, before any work, for what is not there."""

    def state(self) -> list[dict[str, Any]]:
        """What it is made of besides the text: equal states give equal tokenizers."""
        return []

    def damage(self, texts: Iterable[str], *, english: bool = True) -> str | None:
        """What it would do to such texts that nobody wants, as the rest of a sentence; None: nothing.

        ``english``: False where they are known to be in another language.
        """
        return None

    def announce(self) -> str:
        """What :meth:`save` does, as a line for people."""
        return f"training a {kind_of(self)} tokenizer"

    def advise(self) -> str:
        """What would leave less of a text unknown, as a sentence."""
        return (
            "A tokenizer made for such text knows more of it, and no text is unknown to one of the kind "
            "byte_level_bpe"
        )

    @abstractmethod
    def save(self, sample: Iterable[str], row_length: int, folder: Path) -> None:
        """Save a fast tokenizer to ``folder``, trained on ``sample`` if it is trained.

        Raises :class:`DataError` where the sample has no words.
        """


class TokenizerFolder(TokenizerChoice):
    """Use an existing Hugging Face fast tokenizer."""

    kind: Literal["folder"] = "folder"
    path: str
    """Folder of a model or tokenizer, or the name of a model on the hub; it must have a mask token."""

    needs_text = False

    def check(self) -> None:
        """Raises :class:`UsageError` where it does not exist, or is none that rows can be made with."""
        self._open()

    def folder(self) -> Path:
        """The folder, which has a ``tokenizer.json``; a hub model's is fetched unless it is in the cache.

        Raises :class:`UsageError` where there is none.
        """
        folder = Path(self.path)
        if is_hub_name(self.path):
            folder = download(self.path, weights=False)
        if not folder.is_dir():
            raise UsageError(
                f"tokenizer folder {self.path} does not exist; give a folder with tokenizer.json, or have "
                "one made of the text with --set tokenizer.kind=wordpiece"
            )
        if not (folder / "tokenizer.json").is_file():
            is_model = (folder / "config.json").is_file()
            instead = snapshot_within(folder) or ("" if is_model else what_it_is(folder))
            if instead:
                raise UsageError(f"tokenizer folder {self.path} has no tokenizer.json{instead}")
            files = {path.name for path in folder.iterdir()}
            # A vocabulary without a config does not say whose it is.
            bare = "vocab.txt" in files and not files & {"config.json", "tokenizer_config.json"}
            opener = "BertTokenizer" if bare else "AutoTokenizer"
            setting = _setting_for(folder)
            raise UsageError(
                f"tokenizer folder {self.path} has no tokenizer.json: only fast tokenizers tell the "
                "character offsets that words need. Where it has another form (vocab.txt, *.model), "
                f"{opener}.from_pretrained('{self.path}'{setting}).save_pretrained('{self.path}') of "
                "transformers writes it"
            )
        return folder

    def state(self) -> list[dict[str, Any]]:
        """Its file, and those with its settings."""
        folder = self.folder()
        others = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
        settings = [file_state(file) for file in others if file.is_file()]
        return [file_state(folder / "tokenizer.json") | {"settings": settings}]

    def save(self, sample: Iterable[str], row_length: int, folder: Path) -> None:
        """Save it as it is; remote code is never run. Raises as :meth:`check` does."""
        self._open().save_pretrained(str(folder))

    def _open(self) -> Any:
        """The tokenizer: a fast one with a mask and a padding token that have no other role."""
        tokenizer: Any = open_tokenizer(self.folder())
        if not tokenizer.is_fast:
            raise UsageError(
                f"tokenizer folder {self.path} opens as a slow tokenizer; a fast one is needed"
            )
        for role in ("mask", "pad"):
            need_role(tokenizer, role, f"tokenizer folder {self.path}")
        for role in ("mask", "pad"):
            self._check_alone(tokenizer, role)
        token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if largest >= MOST_IDS:
            raise UsageError(
                f"tokenizer folder {self.path} gives the token {shown(token)} the id {largest:,}; a model "
                f"needs weights for every id up to the largest, and {MOST_IDS - 1:,} is the largest that "
                "is supported: number the tokens anew"
            )
        return tokenizer

    def _check_alone(self, tokenizer: Any, role: str) -> None:
        """Refuse one token for two roles: what is padding is seen by no other token, what is masked is asked
        for.
        """
        shared = other_roles(tokenizer, role)
        if shared:
            token = getattr(tokenizer, f"{role}_token")
            raise UsageError(
                f"tokenizer folder {self.path} has {shown(token)} as its {role} token and as its "
                f"{' and '.join(shared)} token; give it another with tokenizer.add_special_tokens("
                f"{{'{role}_token': '<{role}>'}}) and save it again"
            )


def _setting_for(folder: Path) -> str:
    """The setting with which BERT's class keeps the entries of a ``vocab.txt``, as a further argument.

    It lower-cases texts and strips accents otherwise, and entries that have them would never occur.
    """
    vocabulary, config = folder / "vocab.txt", read_object(folder / "tokenizer_config.json") or {}
    if not vocabulary.is_file():
        return ""
    lines = vocabulary.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [line for line in lines if not _SPECIAL.fullmatch(line)]
    changed = {
        "do_lower_case": sum(entry != entry.lower() for entry in entries),
        "strip_accents": sum(_has_marks(entry) for entry in entries),
    }
    for setting, number in changed.items():
        if config.get(setting) is None and number > _MANY_CHANGED * len(entries):
            return f", {setting}=False"
    return ""


def _has_marks(entry: str) -> bool:
    return any(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", entry))


def open_saved(folder: Path) -> SavedTokenizer:
    """What :meth:`TokenizerChoice.save` saved in ``folder``."""
    tokenizer: Any = open_tokenizer(folder)
    cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    return SavedTokenizer(
        folder=folder,
        sha256=file_sha256(folder / "tokenizer.json"),
        vocab_size=vocabulary_size(tokenizer),
        pad_id=tokenizer.pad_token_id,
        cls_id=tokenizer.bos_token_id if cls_id is None else cls_id,
        sep_id=tokenizer.eos_token_id if sep_id is None else sep_id,
        special_ids=tuple(sorted(special_ids(tokenizer))),
    )
