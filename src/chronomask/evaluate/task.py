"""What a task is to the rest: a name, a recipe, a check of everything beforehand, a run with one result.

A new task is a subclass of :class:`Task` in a file of its own, and is known as soon as it is defined. What
most tasks need stands here too. Nothing here, and nothing at the top of a task's file, imports torch, so
that a wrong recipe is refused before that is loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, get_args

from numpy.typing import NDArray

from chronomask.compressed import COMPRESSIONS
from chronomask.config import Config
from chronomask.errors import DataError, UsageError, need
from chronomask.runs.result import TaskResult, versions_here
from chronomask.text_files import check_text

if TYPE_CHECKING:
    from chronomask.evaluate.subject import Subject

__all__ = [
    "REGISTRY",
    "Cached",
    "Task",
    "content_sha256",
    "families",
    "file_of_part",
    "files_in",
    "folder_of",
    "is_hub",
    "is_there",
    "json_lines",
    "load_split",
    "name_inside",
    "no_file_of_part",
    "one_file",
    "parse_json",
    "register",
    "task_folder",
    "texts_in",
]

T = TypeVar("T")
Recipe = TypeVar("Recipe", bound=Config)


REGISTRY: dict[str, Task[Any]] = {}
"""Every task by name, with its default settings."""
_TASKS = "chronomask.evaluate.tasks"
"""The package of the tasks that come with chronomask."""


def register(task: Task[Any]) -> None:
    """Enter a task under its name; another task of the same class takes the place of the one before.

    Raises UsageError for a name, or a family, that means something already.
    """
    place = _place_of(task)
    if not all(isinstance(getattr(task, key, None), str) for key in ("name", "family")):
        raise UsageError(f"the task {place} needs a name and a family, two texts")
    if not place.startswith(f"{_TASKS}."):
        import_module(_TASKS)  # so that their names are taken
    before = REGISTRY.get(task.name)
    is_new = before is None or _place_of(before) != place
    if is_new and (before is not None or task.name in {*families()} - {task.family}):
        raise UsageError(f"there is a task or a family called '{task.name}': choose another name")
    namesake = REGISTRY.get(task.family)
    if namesake is not None and namesake.family != task.family:
        raise UsageError(f"there is a task called '{task.family}': choose another family")
    REGISTRY[task.name] = task


def families() -> list[str]:
    """The families of all tasks."""
    return sorted({task.family for task in REGISTRY.values()})


def _place_of(task: Task[Any]) -> str:
    """Where its class was defined: the same for a cell of a notebook that is run again."""
    return f"{type(task).__module__}.{type(task).__qualname__}"


class Task(ABC, Generic[Recipe]):
    """One number about one model, with what is needed to get it; an instance has settings of its own.

    A class in which ``name`` stands, and which can be made without arguments, is registered with its default
    settings when it is defined. Where one class serves several tasks, each is made and passed to
    :func:`register`.
    """

    name: str
    """unique; the name of the result files: ``cola``, ``squad``, ``blimp``, …"""
    family: str
    """what several tasks are asked for by, and the folder of their files: ``glue``, ``squad``, …"""
    title: str = ""
    """what reports call it: ``CoLA``; empty: its name, with spaces"""
    trains_model: ClassVar[bool] = False
    """whether it trains the model for itself, rather than measure the model as it is"""
    unit: ClassVar[str] = "fraction"
    """of the primary metric: ``fraction``, which is shown as per cent, ``percent``, ``nats``, or the name of
    another one, whose numbers are shown as they are"""
    draws: ClassVar[bool] = True
    """False: the seed changes nothing, so it is run once, with seed 0"""
    outside_recipe: ClassVar[tuple[str, ...]] = ()
    """settings that decide no number, such as how many tokens a forward pass has, or where files lie;
    ``device`` is one of every task's"""
    of_prepared_data: ClassVar[bool] = False
    """whether its data is prepared data: that of the run itself where no other is named"""
    data_setting: ClassVar[str | None] = None
    """the setting that may say where its data lies, so that no folder of tasks' files is needed"""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls) and not inspect.isabstract(cls) and _needs_no_arguments(cls):
            register(_with_defaults(cls))

    def __init__(self, config: Recipe | None = None) -> None:
        self.config = config if config is not None else _recipe_of(type(self))()

    def with_config(self, config: Recipe) -> Self:
        """The same task with other settings."""
        return type(self)(config)

    @property
    def names_its_data(self) -> bool:
        """Whether its settings say where its data lies."""
        return self.data_setting is not None and getattr(self.config, self.data_setting) is not None

    @property
    def recipe(self) -> dict[str, Any]:
        """The result's ``recipe``: every setting that decides the numbers."""
        values = self.config.to_dict()
        outside = {"device", *self.outside_recipe}
        return {name: value for name, value in values.items() if name not in outside}

    def differing_settings(self, result: TaskResult) -> list[str]:
        """Names of the settings in which a result differs from this task."""
        now = json.loads(json.dumps(self.recipe))  # as a result file would hold it
        if now.get("precision") == "auto":  # a result says which it was
            now["precision"] = result.recipe.get("precision")
        names = sorted(result.recipe.keys() | now.keys())
        return [name for name in names if result.recipe.get(name) != now.get(name)]

    @abstractmethod
    def data_sha256(self, task_data: Path) -> str:
        """The result's ``data_sha256``, of the files in folder ``task_data`` that the task reads.

        Raises UsageError for files that are not there, DataError for those that cannot be read.
        """

    def check_packages(self) -> None:
        """Raise UsageError where a package that the task rests on is not installed."""

    @abstractmethod
    def check(self, model: Subject, task_data: Path) -> None:
        """Raise UsageError or DataError for all that would fail later: files, columns, labels, heads."""

    def check_long(self, model: Subject, task_data: Path, progress: bool) -> None:
        """:meth:`check`; where that may take long, ``progress`` allows it to show how far it is."""
        self.check(model, task_data)

    @abstractmethod
    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Do the work; ``progress`` allows it to show how far it is."""

    def result(
        self,
        model: Subject,
        seed: int,
        started: float,
        *,
        metrics: Mapping[str, float],
        primary: str,
        higher_is_better: bool = True,
        num_examples: Mapping[str, int],
        data_sha256: str,
        packages: Iterable[str] = (),
        details: Mapping[str, float] | None = None,
        examples: Mapping[str, NDArray[Any]],
        left_out: Mapping[str, int] | None = None,
    ) -> TaskResult:
        """The result of this task, which has just ended.

        ``started``: ``time.monotonic()`` when it began. ``packages``: those the numbers rest on beside
        what every task rests on. ``left_out`` may name reasons that left out nothing. The rest is as in
        :class:`TaskResult`.
        """
        recipe = self.recipe
        if recipe.get("precision") == "auto":
            from chronomask.model.device import choose_device, precision_on

            device = choose_device(self.config.to_dict()["device"])
            recipe["precision"] = precision_on(device, "auto")
        return TaskResult(
            task=self.name,
            family=self.family,
            seed=seed,
            model=model.name,
            model_sha256=model.sha256,
            step=model.step,
            metrics=metrics,
            primary=primary,
            higher_is_better=higher_is_better,
            num_examples=num_examples,
            recipe=recipe,
            data_sha256=data_sha256,
            versions=versions_here(*packages),
            seconds=time.monotonic() - started,
            details=details or {},
            examples=examples,
            unit=self.unit,
            title=self.title or self.name.replace("_", " "),
            trains_model=self.trains_model,
            setup_sha256=model.setup_sha256,
            left_out={reason: int(count) for reason, count in (left_out or {}).items() if count},
        )


def _needs_no_arguments(cls: type[Task[Any]]) -> bool:
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    return all(
        parameter.default is not parameter.empty
        or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )


def _with_defaults(cls: type[Task[Any]]) -> Task[Any]:
    """A task with the defaults of its settings; raises UsageError where one has none."""
    try:
        return cls()
    except UsageError as error:
        raise UsageError(
            f"the task {cls.__qualname__} cannot be made with the defaults of its settings: {error}; give "
            "every setting a default"
        ) from None


def _recipe_of(cls: type[Task[Recipe]]) -> type[Recipe]:
    """The config that a class of tasks, or the nearest of its bases, names in brackets: ``Task[Recipe]``.

    Raises UsageError where none of them names one.
    """
    for own in cls.__mro__:
        for base in vars(own).get("__orig_bases__", ()):
            for given in get_args(base):
                if isinstance(given, type) and issubclass(given, Config):
                    return given  # pyright: ignore[reportReturnType]
    raise UsageError(
        "no settings are named: derive the class from Task[Settings], where Settings is a subclass of "
        "chronomask.config.Config"
    )


class Cached(Generic[T]):
    """The value made last, such as files that were read; another key makes it anew."""

    def __init__(self) -> None:
        self._last: tuple[Hashable, T] | None = None

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``."""
        if self._last is None or self._last[0] != key:
            self._last = key, make()
        return self._last[1]

    def forget(self) -> None:
        """Make it anew the next time."""
        self._last = None


def folder_of(task_data: Path, family: str) -> Path:
    """Where a family's files lie: in the folder of that name, or in ``task_data`` itself."""
    inner = task_data / family
    return inner if inner.is_dir() else task_data


def task_folder(task_data: Path, family: str, folder: str) -> Path:
    """Where the files of one task of a family lie: its ``folder`` there, or ``task_data`` if that is it."""
    place = folder_of(task_data, family) / folder
    is_it = not place.is_dir() and task_data.resolve().name == folder
    return task_data if is_it else place


def is_there(path: Path) -> bool:
    """Whether there is the file, or a compressed one of its name."""
    return bool(_forms_of(path))


def one_file(
    path: Path, way_out: str = "name the folder of the tasks' files that holds it"
) -> Path:
    """The file, or the compressed one of its name; raises UsageError if there is none, or more than one."""
    found = _forms_of(path)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"{path} does not exist (nor with {', '.join(COMPRESSIONS)} after its name): {way_out}"
        )
    names = " and ".join(each.name for each in found)
    raise UsageError(f"{path.parent} holds {names}: leave only one of them")


def _forms_of(path: Path) -> list[Path]:
    named = (path.with_name(path.name + ending) for ending in ("", *COMPRESSIONS))
    return [each for each in named if each.is_file()]


def files_in(folder: Path, ends: tuple[str, ...], *, below: bool = False) -> list[Path]:
    """Files of a folder, and ``below`` those one folder down, whose names end so; none that is hidden."""
    found = [
        path for pattern in (("*", "*/*") if below else ("*",)) for path in folder.glob(pattern)
    ]
    return sorted(
        path
        for path in found
        if path.name.endswith(ends)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


_PARTS = {
    "train": ("train",),
    "dev": ("dev", "val", "valid", "validation", "testa", "eval"),
    "test": ("test", "testb"),
}
"""What a part is called in the names of files."""


def file_of_part(folder: Path, part: str, ends: tuple[str, ...]) -> Path | None:
    """The file of ``train``, ``dev`` or ``test`` in a folder, maybe compressed; None if there is none.

    Its name without one of the endings ``ends``, or else up to its first stop, is the part's name, or ends in
    it behind what is no letter; capitals are no difference. Other usual names are known too (of dev ``val``,
    ``valid``, ``validation``, ``eval``, ``testa``; of test ``testb``). Raises UsageError for several.
    """
    found = [path for path in _visible_files(folder) if _part_of(path, ends) == part]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{folder} holds several {part} files ({names}): leave only one of them")
    return found[0] if found else None


def no_file_of_part(folder: Path, part: str, ends: tuple[str, ...], way_out: str) -> UsageError:
    """What to raise where :func:`file_of_part` finds none; it names files that are there and are not read."""
    if is_hub(folder):
        return UsageError("only files of your own are read, and none of the hub: name their folder")
    if not folder.is_dir():
        return UsageError(f"there is no folder {folder}: name the folder that holds the files")
    *most, last = (f"{part}{end}" for end in ends)
    others = [path.name for path in _visible_files(folder)]
    there = f", but {', '.join(others[:5])}{', …' if others[5:] else ''}" if others else ""
    return UsageError(
        f"{folder} holds no {part} file, such as {', '.join(most)} or {last} (also compressed){there}: "
        f"{way_out}"
    )


def name_inside(path: Path) -> str:
    """The name of a file in lower case; of a compressed one, that of the file inside."""
    return (path.stem if path.suffix in COMPRESSIONS else path.name).lower()


def _visible_files(folder: Path) -> list[Path]:
    return files_in(folder, ("",))


def _part_of(path: Path, ends: tuple[str, ...]) -> str | None:
    """The part whose file it is by its name."""
    stem, stop, ending = name_inside(path).rpartition(".")
    if stop + ending not in ends:
        return None
    for text in (stem, stem.partition(".")[0]):
        for part, names in _PARTS.items():
            if re.search(rf"(?<![^\W\d_])(?:{'|'.join(names)})\Z", text):
                return part
    return None


def parse_json(text: str, where: str) -> Any:
    """The value in JSON text; raises DataError for what is none, or nested too deeply to be an example."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{where} is nested too deeply to hold examples") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            raise DataError(
                f"{where} goes on after one JSON value, at line {error.lineno}, column {error.colno}: it "
                "must hold one, as those that the task's authors publish"
            ) from None
        raise DataError(
            f"{where} is not JSON ({error}): the file is cut short or damaged, download it again"
        ) from None


def json_lines(lines: Iterable[str], name: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the JSON object of each line that is not blank; raises DataError for a line of anything
    else, naming it.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        values = parse_json(line, where)
        if not isinstance(values, dict):
            raise DataError(f"{where} is not a JSON object")
        yield where, values


def texts_in(values: Mapping[str, Any], names: Sequence[str], where: str) -> list[str]:
    """The texts under these keys; raises DataError where one is missing or is no text."""
    if missing := [name for name in names if not isinstance(values.get(name), str)]:
        raise DataError(f"{where} lacks {', '.join(missing)}: every line needs {', '.join(names)}")
    return [check_text(values[name], where) for name in names]


def is_hub(task_data: Path) -> bool:
    """Whether data sets are meant by their names on the hub, rather than a folder called hub."""
    return str(task_data) == "hub" and not task_data.exists()


def load_split(dataset: str, name: str | None, split: str) -> Any:
    """One split of a data set on the hub as a ``datasets.Dataset``; raises UsageError where there is none."""
    datasets = need("datasets", "hub", "Reading a data set by its name on the hub")
    shown = f"{dataset} ({name}, {split})" if name else f"{dataset} ({split})"
    try:
        loaded = datasets.load_dataset(dataset, name, split=split)
    except Exception as error:  # the library raises what its transport layers do
        first = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"{shown} cannot be loaded from the hub: {type(error).__name__}: {first}; "
            "name a folder that holds the files instead"
        ) from None
    if not len(loaded):
        raise DataError(f"{shown} is empty")
    return loaded


def content_sha256(*parts: Any) -> str:
    """SHA-256 over JSON-able content, where there is no file of ours to hash."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, ensure_ascii=False).encode("utf-8") + b"\n")
    return total.hexdigest()
