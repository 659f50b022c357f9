"""What a preparation is: sources, tokenizer, tagger, packing, and a few numbers.

May enter: values and their bounds. The parts that act on them import this file, never the reverse.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from chronomask.config import Config

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
    "Files",
    "FrequencyBands",
    "HubDataset",
    "InstalledPackages",
    "LocalExecutor",
    "MinHashDuplicates",
    "NoDeduplication",
    "NoTagger",
    "Packing",
    "PrepareConfig",
    "RayExecutor",
    "SlurmExecutor",
    "Source",
    "SpacyTagger",
    "StanzaTagger",
    "Tagger",
    "TokenizerChoice",
    "TokenizerFolder",
    "Unigram",
    "WordPiece",
]


class Files(Config):
    """Text files: .txt, .jsonl, .csv, .tsv, .parquet, .conllu, .wet or .warc, each also with .gz, .xz
    or .zst.
    """

    kind: Literal["files"] = "files"
    path: str
    """A file, a folder (searched in depth, in sorted order) or a glob pattern; or an address of them
    that fsspec opens, such as ``s3://bucket/corpus/*.jsonl.zst``."""


class InstalledPackages(Config):
    """English prose that is on every machine: docstrings and READMEs of installed Python packages."""

    kind: Literal["installed_packages"] = "installed_packages"
    max_bytes: int = Field(default=4_000_000, ge=1_000)
    """Stop after this much text, in bytes of UTF-8; every package gives a fair share of it."""


class HubDataset(Config):
    """A dataset of the Hugging Face hub, or a folder of one, read as a stream."""

    kind: Literal["hub"] = "hub"
    name: str
    """Its name, ``owner/name``, or a folder."""
    config: str | None = None
    """Name of its configuration, where it has several."""
    split: str = "train"
    """Which of its splits to read."""
    revision: str | None = None
    """Commit or tag to read; None: the newest, so another day may bring other text."""


Source = Annotated[Files | HubDataset | InstalledPackages, Field(discriminator="kind")]

_HUB_NAME = re.compile(r"hub:(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<split>.+))?")


def _path_to_source(value: Any) -> Any:
    """A path or address as it is, and ``hub:owner/name[:config][@split]``."""
    if not isinstance(value, str):
        return value
    if not value.startswith("hub:"):
        return {"kind": "files", "path": value}
    match = _HUB_NAME.fullmatch(value)
    if match is None:
        raise ValueError("not of the form hub:owner/name[:config][@split]")
    return {"kind": "hub"} | {k: v for k, v in match.groupdict().items() if v is not None}


class WordPiece(Config):
    """Train a WordPiece tokenizer as BERT's, specials [PAD] [UNK] [CLS] [SEP] [MASK]."""

    kind: Literal["wordpiece"] = "wordpiece"
    vocab_size: int = Field(default=16_384, ge=100, le=1_000_000)
    """Number of ids, special tokens included; a small corpus may give fewer."""
    lowercase: bool = True
    """Lower-case the text and strip accents before splitting it (BERT "uncased")."""


class ByteLevelBPE(Config):
    """Train a byte-level BPE tokenizer as RoBERTa's and ModernBERT's: no text is unknown to it."""

    kind: Literal["byte_level_bpe"] = "byte_level_bpe"
    vocab_size: int = Field(default=16_384, ge=300, le=1_000_000)
    """Number of ids, the 256 bytes and the special tokens included."""


class Unigram(Config):
    """Train a Unigram tokenizer as ALBERT's, XLNet's and T5's: the likeliest split into pieces."""

    kind: Literal["unigram"] = "unigram"
    vocab_size: int = Field(default=16_384, ge=100, le=1_000_000)
    """Number of ids, special tokens included; a small corpus may give fewer."""
    lowercase: bool = False
    """Lower-case the text before splitting it."""


class TokenizerFolder(Config):
    """Use an existing Hugging Face fast tokenizer."""

    kind: Literal["folder"] = "folder"
    path: str
    """A folder that ``AutoTokenizer.from_pretrained`` opens; it must have a mask token."""


TokenizerChoice = Annotated[
    WordPiece | ByteLevelBPE | Unigram | TokenizerFolder, Field(discriminator="kind")
]


class EnglishTagger(Config):
    """The bundled English part-of-speech tagger."""

    kind: Literal["english"] = "english"


class SpacyTagger(Config):
    """Any installed spaCy pipeline that sets universal part-of-speech tags."""

    kind: Literal["spacy"] = "spacy"
    name: str
    """Name of an installed pipeline package, such as ``de_core_news_sm``, or its folder."""


class StanzaTagger(Config):
    """A stanza pipeline whose models are on this machine; stanza is never asked to download any."""

    kind: Literal["stanza"] = "stanza"
    language: str
    """Language of the models, such as ``de``."""
    package: str = "default"
    """Which of the language's models, such as ``gsd``."""
    folder: str | None = None
    """Where the models are; None: stanza's own folder."""


class NoTagger(Config):
    """Unicode words without classes, for any language; content schedules have nothing to prefer."""

    kind: Literal["none"] = "none"


class FrequencyBands(Config):
    """Unicode words, for any language; a word's class is how frequent it is: ``band_01`` the most."""

    kind: Literal["frequency_bands"] = "frequency_bands"
    num_bands: int = Field(default=10, ge=1, le=60)
    """Number of bands; each holds about the same share of the text's words."""


MAX_TAGS = 62
"""Tags a column may hold: what masking handles, less the class of words without a tag."""


class ColumnTagger(Config):
    """Words and classes that the sources bring: two list columns, or CoNLL-U files with their UPOS."""

    kind: Literal["column"] = "column"
    words_key: str = "words"
    """Field or column of .jsonl and .parquet files with a list of words; spaces join them to the text."""
    tags_key: str = "tags"
    """Field or column with as many tags; an empty one or null is no class."""
    class_names: tuple[str, ...] = ()
    """The tags there are; any other is refused. Empty: those that occur."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = self.class_names
        if len(names) > MAX_TAGS:
            raise ValueError(f"{len(names)} class names; at most {MAX_TAGS} fit")
        if len(set(names)) < len(names) or not all(names) or "none" in names:
            raise ValueError("class names must be distinct and not empty, and 'none' is taken")
        return self


Tagger = Annotated[
    EnglishTagger | SpacyTagger | StanzaTagger | NoTagger | FrequencyBands | ColumnTagger,
    Field(discriminator="kind"),
]


class Concatenate(Config):
    """Documents one after the other, cut wherever a row is full: no padding but at the very end."""

    kind: Literal["concatenate"] = "concatenate"


class Documents(Config):
    """Whole documents side by side in a row, best fit first; only one longer than a row is cut."""

    kind: Literal["documents"] = "documents"


Packing = Annotated[Concatenate | Documents, Field(discriminator="kind")]


class DatatroveFilter(Config):
    """A filter of datatrove; documents that it refuses are skipped, counted and named."""

    kind: Literal[
        "gopher_quality", "gopher_repetition", "c4_quality", "fineweb_quality", "language"
    ]
    """Which of its filters; ``c4_quality`` also takes single lines out of a document."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the filter's class that differ from its defaults, by their own names."""


class NoDeduplication(Config):
    """Every document is kept."""

    kind: Literal["none"] = "none"


class ExactDuplicates(Config):
    """Of documents whose texts are equal the first is kept."""

    kind: Literal["exact"] = "exact"


class MinHashDuplicates(Config):
    """Of documents that share most of their word n-grams one is kept (datatrove's MinHash)."""

    kind: Literal["minhash"] = "minhash"
    ngram_words: int = Field(default=5, ge=1)
    """Words of an n-gram."""
    num_buckets: int = Field(default=14, ge=1, le=999)
    """Buckets; two documents are near duplicates if all hashes of one bucket agree."""
    hashes_per_bucket: int = Field(default=8, ge=1)
    """Hashes of a bucket."""
    language: str = "eng"
    """Language that words are split by, in three letters."""


Deduplication = Annotated[
    NoDeduplication | ExactDuplicates | MinHashDuplicates,
    Field(discriminator="kind"),
]


class LocalExecutor(Config):
    """Processes on this machine."""

    kind: Literal["local"] = "local"


class SlurmExecutor(Config):
    """A job array; every node must see the prepared folder and this Python under the same path."""

    kind: Literal["slurm"] = "slurm"
    partition: str | None = None
    """Partition to submit to; None: the cluster's own choice."""
    time: str = "04:00:00"
    """Limit of a job, as ``sbatch --time`` takes it; what is not done by then is submitted again."""
    memory_per_worker: str = "2G"
    """Memory of a job, as ``sbatch --mem`` takes it."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """Processor cores of a job; it uses one."""
    options: tuple[str, ...] = ()
    """More options of ``sbatch``, such as ``--account=name``."""
    setup: tuple[str, ...] = ()
    """Shell lines that a job runs first, such as ``module load gcc``."""


class RayExecutor(Config):
    """A Ray cluster, or Ray on this machine; every node must see the prepared folder."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """Address of a running cluster; None: what ``RAY_ADDRESS`` names, else an instance of its own."""


Executor = Annotated[
    LocalExecutor | SlurmExecutor | RayExecutor,
    Field(discriminator="kind"),
]


class PrepareConfig(Config):
    """How text becomes rows. Everything but ``workers`` and ``executor`` decides what the rows are."""

    sources: tuple[Annotated[Source, BeforeValidator(_path_to_source)], ...] = Field(min_length=1)
    """Where the text comes from: paths, or sources told apart by ``kind``; read in this order."""
    text_key: str = "text"
    """Name of the text field of .jsonl and of the text column of .csv, .tsv and .parquet files."""
    tokenizer: TokenizerChoice = WordPiece()
    """The tokenizer: trained on a sample of the text, or given."""
    tagger: Tagger = EnglishTagger()
    """Where words and their classes come from."""
    filters: tuple[DatatroveFilter, ...] = ()
    """Filters that every document must pass, in this order."""
    deduplication: Deduplication = NoDeduplication()
    """Which documents count as the same, after the filters."""
    packing: Packing = Concatenate()
    """How documents are put into rows."""
    row_length: int = Field(default=128, ge=8, le=65_536)
    """Tokens of a row, special tokens included."""
    held_out: float = Field(default=0.01, ge=0.0, le=0.5)
    """Share of documents kept for validation, chosen by a hash of their text."""
    min_characters: int = Field(default=2, ge=1)
    """Documents shorter than this, in characters, are skipped and counted."""
    max_document_bytes: int = Field(default=64_000_000, ge=1_000)
    """Documents of more bytes of UTF-8 are skipped and counted: it bounds the memory of a worker."""
    id_key: str | None = None
    """Name of a field or column with a document's id; kept in ``documents.parquet``."""
    metadata_keys: tuple[str, ...] = ()
    """Names of fields or columns to keep of every document, in ``documents.parquet``."""
    tokenizer_sample_characters: int = Field(default=30_000_000, ge=1_000)
    """How much text a tokenizer is trained on, drawn by document from all sources."""
    part_characters: int = Field(default=1_000_000, ge=1_000)
    """Text handed to a worker at a time, in characters: the unit that an interruption can cost."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes, or jobs; 0 is one per processor core. The result is the same for any number."""
    executor: Executor = LocalExecutor()
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
        if isinstance(self.tagger, ColumnTagger) and self.filters:
            raise ValueError("filters may change a text, whose words tagger.kind=column brings")
        return self

    def shaped(self) -> Self:
        """A copy without what cannot change a row: workers and executor are the defaults."""
        return self.model_copy(update={"workers": 0, "executor": LocalExecutor()})

    def shaping(self) -> dict[str, Any]:
        """The values that decide the rows."""
        return self.shaped().to_dict()
