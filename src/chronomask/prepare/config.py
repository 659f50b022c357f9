"""What a preparation is: sources, tokenizer, tagger, packing, and a few numbers.

The alternatives are defined beside what acts on them; all are named here. Importing this file imports none
of the libraries that preparing needs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from chronomask.config import Config, kind_of
from chronomask.config_layers import Shorthand
from chronomask.data.scores import NoScores, Scores
from chronomask.errors import shown
from chronomask.prepare.clean import (
    DatatroveFilter,
    Deduplication,
    ExactDuplicates,
    MinHashDuplicates,
    NoDeduplication,
)
from chronomask.prepare.executors import Executor, LocalExecutor, RayExecutor
from chronomask.prepare.new_words import ExtendedFolder
from chronomask.prepare.read.records import Fields, TxtDocuments
from chronomask.prepare.read.sources import (
    Files,
    HubDataset,
    InstalledPackages,
    Source,
    source_of_text,
)
from chronomask.prepare.rows.pack import Concatenate, Documents, Packing
from chronomask.prepare.tokenizer import TokenizerChoice, TokenizerFolder
from chronomask.prepare.trained_tokenizer import ByteLevelBPE, Unigram, WordPiece
from chronomask.prepare.words.bands import FrequencyBands
from chronomask.prepare.words.columns import ColumnTagger
from chronomask.prepare.words.spacy_tagger import EnglishTagger, SpacyTagger
from chronomask.prepare.words.stanza_tagger import StanzaTagger
from chronomask.prepare.words.tagger import Tagger, tagger_of_text
from chronomask.prepare.words.unicode import NoTagger

__all__ = [
    "ByteLevelBPE",
    "ColumnTagger",
    "Concatenate",
    "DatatroveFilter",
    "Deduplication",
    "Documents",
    "EnglishTagger",
    "ExactDuplicates",
    "Executor",
    "ExtendedFolder",
    "Files",
    "FrequencyBands",
    "HubDataset",
    "InstalledPackages",
    "LocalExecutor",
    "MinHashDuplicates",
    "NoDeduplication",
    "NoScores",
    "NoTagger",
    "Packing",
    "PrepareConfig",
    "RayExecutor",
    "Scores",
    "Source",
    "SpacyTagger",
    "StanzaTagger",
    "Tagger",
    "TokenizerChoice",
    "TokenizerFolder",
    "Unigram",
    "WordPiece",
]


def _without_slurm(value: Any) -> Any:
    """Raises ValueError for the executor that there was, with what takes its place."""
    if isinstance(value, dict) and value.get("kind") == "slurm":
        raise ValueError(
            "kind 'slurm' is gone: a job array runs shares of a preparation, such as chronomask prepare … "
            "--only 1/8, and the same command without --only finishes it; take the executor out of the config"
        )
    return value


class PrepareConfig(Config):
    """How text becomes rows. Everything but ``workers`` and ``executor`` decides what the rows are."""

    sources: tuple[
        Annotated[Source, BeforeValidator(source_of_text, json_schema_input_type=Source | str)], ...
    ] = Field(min_length=1)
    """Where the text comes from: paths, or sources with a ``kind``; read in this order."""
    text_key: str = "text"
    """Name of the text field of .jsonl and of the text column of .csv, .tsv and .parquet files."""
    tokenizer: TokenizerChoice = WordPiece()
    """The tokenizer: trained on a sample of the text, or given."""
    tagger: Annotated[Tagger, Shorthand(tagger_of_text, group=tagger_of_text)] = EnglishTagger()
    """Where words and their classes come from; a name such as ``bands`` or ``spacy:de`` is enough."""
    filters: tuple[DatatroveFilter, ...] = ()
    """Filters that every document must pass, in this order."""
    deduplication: Deduplication = NoDeduplication()
    """Which documents count as the same, after the filters."""
    packing: Packing = Concatenate()
    """How documents are put into rows."""
    scores: Scores = NoScores()
    """How hard each token is, for masking to use; kept beside the rows."""
    row_length: int = Field(default=128, ge=8, le=65_536)
    """Tokens of a row, special tokens included."""
    held_out: float = Field(default=0.01, ge=0.0, le=0.5)
    """Share of documents kept for validation, chosen by a hash of their text."""
    min_characters: int = Field(default=2, ge=1)
    """Documents shorter than this, in characters, are skipped and counted."""
    max_document_bytes: int = Field(default=16_000_000, ge=1_000, le=1_000_000_000)
    """Documents of more bytes of UTF-8 are skipped and counted: it bounds the memory of a worker."""
    txt_documents: TxtDocuments = "auto"
    """What a document of a .txt file is: ``blank_lines``: the text between blank lines; ``lines``: every
    line; ``auto``: between blank lines, but every line where a file begins with more than
    ``max_document_bytes`` without a blank one."""
    id_key: str | None = None
    """Name of a field or column with a document's id; kept in ``documents.parquet``."""
    metadata_keys: tuple[str, ...] = ()
    """Names of fields or columns to keep of every document, in ``documents.parquet``."""
    tokenizer_sample_characters: int = Field(default=30_000_000, ge=1_000)
    """How much text a tokenizer is trained on, drawn by document from all sources."""
    part_characters: int = Field(default=1_000_000, ge=1_000)
    """Text that a worker processes at a time, in characters; an interruption loses at most that."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes, or tasks of a cluster; 0: as many as there are processor cores
    for it. The result is the same for any number."""
    executor: Annotated[Executor, BeforeValidator(_without_slurm)] = LocalExecutor()
    """Where the workers are. The result is the same anywhere."""

    @classmethod
    def of(cls, value: Any, **changes: Any) -> Self:
        """As :meth:`Config.of`; a path that is no YAML file, or a list of paths, is the text to prepare."""
        if isinstance(value, str | Path) and Path(value).suffix not in (".yaml", ".yml"):
            value = [value]
        if isinstance(value, list | tuple):
            value = {"sources": [str(path) for path in value]}
        return super().of(value, **changes)

    @model_validator(mode="after")
    def _unchanged_words(self) -> Self:
        if self.tagger.columns and self.filters:
            raise ValueError(
                f"filters may change a text, and tagger.kind={kind_of(self.tagger)} brings its words: use one"
            )
        return self

    @model_validator(mode="after")
    def _different_keys(self) -> Self:
        for key, times in Counter(self.metadata_keys).items():
            if times > 1:
                raise ValueError(f"metadata_keys names {shown(key)} {times} times: name it once")
        return self

    def fields(self) -> Fields:
        """What is read of a record: its text, or words and tags; its id and metadata; how large it may be."""
        return Fields(
            self.text_key,
            self.tagger.columns,
            max_bytes=self.max_document_bytes,
            txt_documents=self.txt_documents,
            id_key=self.id_key,
            metadata_keys=self.metadata_keys,
        )

    def without_workers(self) -> Self:
        """A copy without what cannot change a row: workers and executor are the defaults."""
        return self.model_copy(update={"workers": 0, "executor": LocalExecutor()})

    def shaping(self) -> dict[str, Any]:
        """The values that decide the rows."""
        return self.without_workers().to_dict()
