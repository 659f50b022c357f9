"""What was asked for: moments of training, masking configs, and the text or rows to show."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chronomask.config_layers import Layer, merge, nested, read_yaml
from chronomask.data.folder import PreparedData
from chronomask.errors import ChronomaskError, UsageError
from chronomask.folders import what_it_is
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import Ptw
from chronomask.masking.objective import LateMasks, MaskedOnly, Objective
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import Run, read_run
from chronomask.text_files import read_text
from chronomask.train.config import RunConfig

__all__ = [
    "PAGE",
    "NamedMasking",
    "Request",
    "check",
    "check_characters",
    "checked_moments",
    "configs_of",
    "data_of",
    "data_paths_of",
    "default_masking",
    "english_is_installed",
    "masking_in",
    "moments_of",
    "text_of",
]

PAGE = "inspect.html"
"""What the page is called in a folder."""
MAX_MOMENTS = 8
MAX_CONFIGS = 6
DEFAULT = MaskingConfig(content=Ptw())
DEFAULT_NAME = "0.30 to 0.15 + PTW"


@dataclass(frozen=True, slots=True)
class Request:
    """The options of ``chronomask inspect``, as its help describes them."""

    text: str | None = None
    file: Path | None = None
    data: Path | None = None
    rows: int | None = None
    tokenizer: Path | None = None
    configs: tuple[Path, ...] = ()
    run: Path | None = None
    changes: tuple[Layer, ...] = ()
    progress: str = "0,0.5,1"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NamedMasking:
    """A masking config, what to call it, and what the run that it is of does beside masking."""

    name: str
    config: MaskingConfig
    objective: Objective = field(default_factory=MaskedOnly)
    late_masks: LateMasks | None = None


def check(request: Request) -> Request:
    """The request with the data that :func:`data_of` finds.

    Raises UsageError or DataError for whatever can be told without opening a tokenizer.
    """
    moments_of(request.progress)
    text = text_of(request)
    run = read_run(request.run) if request.run else None
    configs_of(request, run)
    data = data_of(request.data, run, for_rows=text is None)
    if data is not None:
        PreparedData.open(data)
    if request.tokenizer is not None and not request.tokenizer.is_dir():
        raise UsageError(f"--tokenizer {request.tokenizer}: there is no such folder")
    return replace(request, data=data)


def data_of(given: Path | None, run: Run | None, *, for_rows: bool) -> Path | None:
    """The prepared data that a picture takes: those given, else the run's own (of a mixture the first).

    None where neither is at hand, which a text can do without. Raises UsageError where rows of a run's data
    are to be shown and these are not where it looks for them.
    """
    if given is not None or run is None:
        return given
    path = data_paths_of(run)[0]
    try:
        PreparedData.open(path)
    except ChronomaskError as error:
        if not for_rows:
            return None
        raise UsageError(
            f"the rows of {run.path} cannot be shown ({error}); give a text, or --data FOLDER with the data "
            "where they are now"
        ) from None
    return path


def data_paths_of(run: Run) -> list[Path]:
    """Where the data of a run are: one folder, or those of its mixture."""
    folder = RunFolder(run.path)
    config = RunConfig.of_run(folder).at(folder)
    return [Path(path) for path in config.data_paths]


def moments_of(progress: str) -> tuple[float, ...]:
    """The numbers of a comma-separated list, rising; raises UsageError for any outside [0, 1]."""
    parts = [part.strip() for part in progress.split(",")]
    return checked_moments(parts, f"--progress {progress!r}")


def checked_moments(values: Sequence[Any], where: str) -> tuple[float, ...]:
    """Moments of training, rising; raises UsageError for any outside [0, 1], none, or too many."""
    moments = set()
    for given in values:
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise UsageError(
                f"{where}: {given!r} is not a number between 0 and 1; give moments such as 0,0.5,1"
            )
        moments.add(value)
    if not moments:
        raise UsageError(f"{where}: give at least one moment of training")
    if len(moments) > MAX_MOMENTS:
        raise UsageError(f"{where}: a picture shows at most {MAX_MOMENTS} moments")
    return tuple(sorted(moments))


def text_of(request: Request) -> str | None:
    """The text to show, None where rows of data are to be shown.

    Raises UsageError when there is no text, two texts, or a file that cannot be read as UTF-8.
    """
    if request.text is not None and request.file is not None:
        raise UsageError("give a text or --file, not both")
    text = request.text
    if text is not None and os.path.isfile(text):  # noqa: PTH113  # Path raises for a long text
        raise UsageError(f"{text} is a file: --file {text} shows the text in it")
    is_folder = text is not None and os.path.isdir(text)  # noqa: PTH112  # likewise
    if text is not None and is_folder and (known := what_it_is(Path(text))):
        raise UsageError(
            f"{text} is a folder, not a text{known}; --data takes prepared data, --run a run, and "
            "--tokenizer a tokenizer"
        )
    if request.file is not None:
        text = _read(request.file)
    if text is None:
        if request.data is None and request.run is None:
            raise UsageError(
                'nothing to show: give a text, as in chronomask inspect "Some text.", or --file, or '
                "--data for rows of prepared data, or --run for those of a run"
            )
        if request.tokenizer is not None:
            raise UsageError(
                f"--tokenizer {request.tokenizer}: rows of prepared data are tokens already; give a text, or "
                "leave --tokenizer out"
            )
        return None
    if request.rows is not None:
        raise UsageError(
            f"--rows {request.rows}: a text is one row; leave out --rows, or the text for rows of --data"
        )
    if not text.strip():
        raise UsageError(f"{request.file or 'the text'} is empty; give a text of at least one word")
    return check_characters(text)


def check_characters(text: str) -> str:
    """The text; raises UsageError where it has bytes that are not UTF-8, as a shell hands them over."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has {text[error.start : error.end]!r} at character {error.start + 1}, which stands "
            "for bytes that are not UTF-8, or for half of a character: give the text as UTF-8"
        ) from None
    return text


def configs_of(request: Request, run: Run | None) -> tuple[NamedMasking, ...]:
    """The masking configs to show, changes applied; the run's own, or the default, if none given.

    Raises UsageError for files that are no config of a run or of masking, and for bad changes.
    """
    if len(request.configs) > MAX_CONFIGS:
        raise UsageError(
            f"{len(request.configs)} configs were given; at most {MAX_CONFIGS} can be shown side by side"
        )
    if request.configs:
        names = _distinct_names(request.configs)
        found = [masking_in(path, name) for name, path in zip(names, request.configs, strict=True)]
    else:
        found = [default_masking(run)]
        if request.changes and run is None:
            found = [replace(found[0], name="as set")]
    return tuple(_change(named, request.changes) for named in found)


def _change(named: NamedMasking, changes: Sequence[Layer]) -> NamedMasking:
    """The same with changes of masking, and of what a run has beside it that is shown."""
    shown = ("objective", "late_masks")
    beside = [change for change in changes if next(iter(change.values)).split(".")[0] in shown]
    masking = [_of_masking(change) for change in changes if change not in beside]
    own = {name: getattr(named, name) for name in shown if getattr(named, name) is not None}
    values = {"data": "", **{name: value.to_dict() for name, value in own.items()}}
    run = RunConfig.from_layers([Layer(named.name, values), *beside])
    config = MaskingConfig.from_layers([Layer(named.name, named.config.to_dict()), *masking])
    return NamedMasking(named.name, config, run.objective, run.late_masks)


def default_masking(run: Run | None) -> NamedMasking:
    """The masking of a run; without one, a falling ratio, with PTW where words can have classes."""
    if run is None and not english_is_installed():
        return NamedMasking("0.30 to 0.15", MaskingConfig())
    if run is None:
        return NamedMasking(DEFAULT_NAME, DEFAULT)
    return masking_in(run.path / "config.yaml", run.name)


def english_is_installed() -> bool:
    """Whether the bundled English tagger has the spaCy that it runs on (the extra ``prepare``)."""
    return find_spec("spacy") is not None


def masking_in(value: MaskingConfig | Mapping[str, Any] | Path, name: str) -> NamedMasking:
    """The masking of a run's values, plain, typed or in a file, or of values of masking alone; raises
    UsageError.
    """
    keys = read_yaml(value) if isinstance(value, Path) else value
    if isinstance(keys, Mapping) and keys.keys() & RunConfig.model_fields.keys():
        config = RunConfig.of(value, data="")
        return NamedMasking(name, config.masking, config.objective, config.late_masks)
    return NamedMasking(name, MaskingConfig.of(value))


def _of_masking(change: Layer) -> Layer:
    """A change of masking, whose path may be as in a run, ``masking.ratio.kind``, or as in masking alone."""
    values = nested(change.values)
    inner = values.pop("masking", {})
    return replace(change, values=merge(values, inner) if isinstance(inner, Mapping) else values)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """File names without their ending, or with their folder where two would be the same."""
    stems = Counter(path.stem for path in paths)
    names = [p.stem if stems[p.stem] == 1 else f"{p.resolve().parent.name}/{p.stem}" for p in paths]
    again = Counter(names)
    return [n if again[n] == 1 else f"{n} #{k}" for k, n in enumerate(names, start=1)]


def _read(file: Path) -> str:
    if not file.is_file():
        why = "is a folder: name a file in it" if file.is_dir() else "does not exist"
        raise UsageError(f"text file {file} {why}")
    return read_text(file)
