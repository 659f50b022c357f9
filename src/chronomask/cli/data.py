"""``chronomask data``: look into prepared data, and carry it elsewhere and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chronomask.cli.options import HELP_FLAGS, Commands, Quiet, show_help
from chronomask.cli.output import tell

__all__ = ["app"]

app = Commands(
    help="Look into prepared data, and carry it elsewhere and back.",
    context_settings=HELP_FLAGS,
    rich_markup_mode="rich",
    invoke_without_command=True,
    callback=show_help,
)
"""The commands on prepared data."""
DataFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of prepared data.")]


@app.command("info", context_settings=HELP_FLAGS)
def data_info(
    folder: DataFolder,
    out: Annotated[
        Path | None, typer.Option(help="Also write it as a page to this .html file.")
    ] = None,
) -> None:
    """Print what prepared data holds: documents, rows, tokens, words, and its classes."""
    from chronomask.data.folder import PreparedData

    data = PreparedData.open(folder)

    from chronomask.report.render import page_path
    from chronomask.show.prepared import PAGE, as_text, look_into, write_data_page

    if out is not None:
        page_path(out, PAGE)
    view = look_into(data)
    tell(as_text(view))
    if out is not None:
        tell(f"\npage: {write_data_page(out, view)}")


@app.command("verify", context_settings=HELP_FLAGS)
def data_verify(folder: DataFolder) -> None:
    """Check every byte; name damaged files, and exit with code 1 if there are any."""
    from chronomask.data.folder import PreparedData

    data = PreparedData.open(folder)
    tell(f"{folder}: whole; {data.verify():,} bytes read, fingerprint {data.fingerprint[:16]}")


@app.command("show", context_settings=HELP_FLAGS)
def data_show(
    folder: DataFolder,
    row: Annotated[int, typer.Option(min=0, help="The first row to print.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to print.")] = 1,
    split: Annotated[str, typer.Option(help="train or held_out.")] = "train",
) -> None:
    """Print rows with their words, pieces and classes."""
    from chronomask.data.folder import PreparedData

    data = PreparedData.open(folder)

    from chronomask.show.terminal import rows_as_text

    colour = sys.stdout.isatty()
    tell(rows_as_text(data, split, row, rows, colour=colour), coloured=colour)
    there = data.split(split).num_rows
    if row + rows > there:
        shown = "1 row is" if there - row == 1 else f"{there - row:,} rows are"
        tell(f"\n{shown} shown of the {rows:,} asked for: {split} ends with row {there - 1:,}")


@app.command("score", context_settings=HELP_FLAGS)
def data_score(
    folder: DataFolder,
    scores: Annotated[
        str,
        typer.Argument(
            metavar="SCORES",
            help="informativeness or pmi, counted from the training rows; or a folder with your own, "
            "train.npy and held_out.npy, a number for every token.",
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Store how hard each token is beside the rows, so that masking can use it.

    A run that has begun on the rows does not go on with them then.
    """
    from chronomask.data.scores import add_scores, scores_named

    data = add_scores(folder, scores_named(scores), progress=not quiet)
    tell(f"{folder}: scores '{data.manifest.scores}', fingerprint {data.fingerprint[:16]}")


@app.command("ngrams", context_settings=HELP_FLAGS)
def data_ngrams(
    folder: DataFolder,
    min_count: Annotated[int, typer.Option(help="N-grams that occur less often are ignored.")] = 10,
    coverage: Annotated[
        float, typer.Option(help="Share of the training tokens that collocations cover at most.")
    ] = 0.5,
    min_pmi: Annotated[
        float,
        typer.Option(help="N-grams with a lower PMI, in nats, are ignored; 0 as in the paper."),
    ] = 3.0,
    quiet: Quiet = False,
) -> None:
    """Find the collocations of two to five words, for `masking.strategy.kind=pmi` to mask together.

    A run that has begun on the rows does not go on with them then.
    """
    from chronomask.data.folder import PreparedData
    from chronomask.data.ngrams import add_ngrams, find_ngrams

    data = PreparedData.open(folder)
    found = find_ngrams(
        data.split("train"),
        min_count=min_count,
        coverage=coverage,
        min_pmi=min_pmi,
        progress=not quiet,
    )
    data = add_ngrams(data, found)
    numbers = ", ".join(f"{number:,} of {n} words" for n, number in found.numbers.items())
    tell(
        f"{folder}: {numbers}; {found.coverage:.1%} of the training tokens lie in one; "
        f"fingerprint {data.fingerprint[:16]}"
    )


@app.command("export", context_settings=HELP_FLAGS)
def data_export(
    folder: DataFolder,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="File (*.parquet), or folder for one file per shard.",
        ),
    ],
) -> None:
    """Write the rows with their words and classes as Parquet, as Hugging Face datasets reads it."""
    from chronomask.data.folder import PreparedData
    from chronomask.data.parquet import export_parquet

    files = export_parquet(PreparedData.open(folder), out)
    size = sum(file.stat().st_size for file in files)
    written = "1 Parquet file" if len(files) == 1 else f"{len(files)} Parquet files"
    tell(f"{out}: {written}, {size:,} bytes")


@app.command("import", context_settings=HELP_FLAGS)
def data_import(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="EXPORT", help="File or folder that `chronomask data export` wrote."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to create.")],
) -> None:
    """Turn an export back into prepared data, with the same rows and the same fingerprint."""
    from chronomask.data.parquet import import_parquet

    data = import_parquet(source, out)
    tell(f"{out}: {data.split('train').num_rows:,} training rows, {data.fingerprint[:16]}")
