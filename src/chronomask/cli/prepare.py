"""``chronomask prepare``: text into tokenised, tagged, packed rows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chronomask.cli.options import (
    Quiet,
    config_flag,
    of_group,
    of_kind,
    of_overrides,
    of_value,
    recipe_names,
)
from chronomask.cli.output import tell
from chronomask.errors import UsageError, amount, nearest

if TYPE_CHECKING:
    from chronomask.config_layers import Layer


def prepare(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where the prepared data go."),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Text: .txt (documents separated by blank lines), .jsonl, .parquet, .csv, .tsv, "
            ".conllu, .wet or .warc, each also .gz, .xz or .zst; files, folders, patterns, addresses "
            "such as s3://…, or hub:owner/name.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="A recipe, such as english, or a YAML file.",
            autocompletion=recipe_names("prepare"),
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        config_flag(
            "KIND|CHECKPOINT",
            "wordpiece, byte_level_bpe or unigram, trained on the text; or that of a model: its folder or "
            "its name on the hub, such as google-bert/bert-base-cased.",
        ),
    ] = None,
    vocab_size: Annotated[str | None, config_flag("N", "Token ids, special ones included.")] = None,
    row_length: Annotated[
        str | None, config_flag("N", "Tokens of a row, special ones included.")
    ] = None,
    tagger: Annotated[
        str | None,
        config_flag(
            "NAME",
            "Where words and their classes come from: english (bundled), spacy:PIPELINE, "
            "stanza:LANGUAGE, bands (by frequency, any language), column (in the sources), none.",
        ),
    ] = None,
    held_out: Annotated[
        str | None, config_flag("SHARE", "Share of the documents that is kept for validation.")
    ] = None,
    workers: Annotated[
        str | None, config_flag("N", "Processes; 0 is as many as there are processor cores for it.")
    ] = None,
    executor: Annotated[str | None, config_flag("KIND", "Where they run: local or ray.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do one of N shares, such as 2/8, beside other machines that do the others; the command "
            "without it finishes.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        config_flag(
            "KEY=VALUE",
            "Change any other value by its path, such as packing.kind=documents; repeatable.",
            "--set",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace what is in the folder."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Turn text into tokenised, tagged, packed rows."""
    from chronomask.config_layers import Layer
    from chronomask.prepare.config import PrepareConfig
    from chronomask.prepare.executors import Share
    from chronomask.recipes import find_recipe

    share = None if only is None else Share.parse(only)
    if share is not None and force:
        raise UsageError(
            "--force does not go with --only: it would remove what other shares did; choose another --out, "
            "or prepare with --force alone"
        )
    if not sources and config is None:
        raise UsageError("nothing to prepare: name text files or folders, or give --config RECIPE")
    first = (
        Layer.of_file(find_recipe(config, "prepare")) if config else Layer("the command line", {})
    )
    layers = [
        first,
        *(of_group("SOURCES", "", "sources", sources) if sources else []),
        *_tokenizer(tokenizer),
        *of_value("--vocab-size", "tokenizer.vocab_size", vocab_size),
        *of_value("--row-length", "row_length", row_length),
        *layers_of_tagger(tagger),
        *of_value("--held-out", "held_out", held_out),
        *of_value("--workers", "workers", workers),
        *of_kind("--executor", "executor", executor),
        *of_overrides(overrides),
    ]
    parsed = PrepareConfig.from_layers(layers)

    from chronomask.prepare.pipeline import prepare as run_prepare
    from chronomask.prepare.pipeline import prepare_share

    if share is not None:
        left = prepare_share(parsed, out, share, progress=not quiet)
        parts = "1 part is" if left == 1 else f"{left:,} parts are"
        others = f"{parts} left to other shares" if left else "so is every other"
        tell(f"{out}: share {share} is done, {others}; the command without --only finishes")
        return
    data = run_prepare(parsed, out, force=force, progress=not quiet)
    train = data.split("train")
    tell(f"{out}: {amount(train.num_rows, 'rows')} of {data.row_length} tokens to train on")


def _tokenizer(text: str | None) -> list[Layer]:
    """``--tokenizer``: a kind to train, or the folder or hub name of a model or tokenizer."""
    from chronomask.config_errors import kinds_at
    from chronomask.prepare.config import PrepareConfig

    kinds = kinds_at(PrepareConfig, "tokenizer")
    if text is None or text in kinds:
        return of_kind("--tokenizer", "tokenizer", text)
    if Path(text).is_file():
        raise UsageError(
            f"--tokenizer {text}: this is a file; give a folder with tokenizer.json and its settings, as "
            "PreTrainedTokenizerFast(tokenizer_file=…, mask_token=…, pad_token=…).save_pretrained(FOLDER) of "
            "transformers makes one"
        )
    if not _is_path(text):
        raise UsageError(
            f"--tokenizer {text}: there is no such kind of tokenizer, and no such folder; "
            f"{nearest(text, kinds)}; a model of the hub is named OWNER/NAME"
        )
    may_be_on_the_hub = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if not (Path(text).is_dir() or may_be_on_the_hub):
        raise UsageError(f"--tokenizer {text}: there is no such folder")
    return of_group("--tokenizer", text, "tokenizer", {"kind": "folder", "path": text})


_NAMES_OF_TAGGERS = {
    "frequency_bands": "bands", "spacy": "spacy:LANGUAGE", "stanza": "stanza:LANGUAGE",
}  # fmt: skip
"""What the kinds are called on the command line, where that is another name."""


def layers_of_tagger(text: str | None) -> list[Layer]:
    """``--tagger``: a name, as a config takes it, or the name or folder of an installed spaCy pipeline."""
    from chronomask.config_errors import kinds_at
    from chronomask.prepare.config import PrepareConfig
    from chronomask.prepare.words.tagger import tagger_of_text

    if text is None:
        return []
    values = tagger_of_text(text)
    if len(values) > 1:
        return of_group("--tagger", text, "tagger", values)
    kinds = kinds_at(PrepareConfig, "tagger")
    if values["kind"] in kinds:
        return of_kind("--tagger", "tagger", values["kind"])
    if not (_is_path(text) or _is_installed(text)):
        names = [_NAMES_OF_TAGGERS.get(kind, kind) for kind in kinds]
        raise UsageError(f"--tagger {text}: there is no such tagger; {nearest(text, names)}")
    return of_group("--tagger", text, "tagger", {"kind": "spacy", "name": text})


def _is_path(text: str) -> bool:
    return "/" in text or text.startswith(".") or Path(text).is_dir()


def _is_installed(name: str) -> bool:
    return name.isidentifier() and find_spec(name) is not None
