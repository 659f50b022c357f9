"""What a study is: a base run, arms that differ from it, seeds, tasks. Values and their bounds alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self
from unicodedata import category, normalize

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from chronomask.config import Config
from chronomask.config_layers import Layer, read_yaml
from chronomask.errors import UsageError, nearest
from chronomask.prepare.config import PrepareConfig
from chronomask.recipes import find_recipe
from chronomask.storage import as_a_shell_has_it
from chronomask.train.config import RunConfig

__all__ = ["StudyConfig", "TaskPlan", "load_study", "study_of"]

Seed = Annotated[int, Field(ge=0)]


def _names_a_folder(name: str) -> str:
    """The name of an arm, as the name of a folder on every file system."""
    kinds = [category(character)[0] for character in name]
    fits = all(
        kind in "LNM" or character in " ._+=%,()-"
        for kind, character in zip(kinds, name, strict=True)
    )
    if kinds[:1] not in (["L"], ["N"]) or not fits or name[-1] in " .":
        raise ValueError(
            "the name of an arm names a folder: begin with a letter or a digit of any script, go on with "
            "these, blanks and . _ + = % , ( ) -, and end with neither a blank nor a stop"
        )
    return name


ArmName = Annotated[str, Field(max_length=60), AfterValidator(_names_a_folder)]


class TaskPlan(Config):
    """How every run is evaluated on one task; what is not said comes from the study."""

    data: str | None = None
    """folder with the task's files"""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] | None = None
    """fine-tuning seeds; a task that draws nothing is run once"""
    curve: bool = False
    """whether the checkpoints at ``curve_steps`` are evaluated too"""
    settings: dict[str, Any] = Field(default_factory=dict)
    """settings of the task that differ from its recipe, such as ``{epochs: 1, limit: 500}``"""


class StudyConfig(Config):
    """Arms × seeds of pre-training, each evaluated on tasks × seeds of fine-tuning."""

    name: str = "study"
    """title of the report"""
    base: dict[str, Any]
    """a run config, or the path of one beside the study's file: what all arms share"""
    prepare: PrepareConfig | None = None
    """text to prepare in the study's folder; without it ``base.data`` names prepared data"""
    arms: Annotated[dict[ArmName, dict[str, Any]], Field(min_length=1)]
    """name → fields of the run config that differ, nested or dotted; see :mod:`chronomask.study.arms`"""
    baseline: str = ""
    """the arm that others are compared with; the first one if not given"""
    contrasts: tuple[tuple[str, str], ...] = ()
    """pairs of arms that the study is about, ``[A, B]`` for A minus B: they alone are tested, with Holm's
    correction over them, of the headline by itself and of all other measures together; every other difference
    is exploratory. None: all arms against the baseline are tested"""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0, 1, 2)
    """seeds of pre-training: each keys initial weights, data order, masks and dropout of every arm alike"""
    tasks: dict[str, TaskPlan] = Field(default_factory=dict)
    """task → how runs are evaluated on it; see ``chronomask evaluate``"""
    task_data: str = "data"
    """folder with the files of all tasks that name no folder of their own"""
    task_seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0, 1, 2)
    """seeds of fine-tuning"""
    curve_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """checkpoints, by their step, that tasks with ``curve`` are evaluated on; the last always is"""

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Self:
        """As in :class:`Config`; the section ``slurm`` is refused with what takes its place."""
        for layer in layers:
            if "slurm" in layer.values:
                raise UsageError(
                    f"{layer.origin}: a study has no 'slurm' section: remove it, and give each element of a "
                    "job array a share of the runs, such as chronomask study run STUDY.yaml --out DIR "
                    "--only 1/8; docs/studies.md has the script"
                )
        return super().from_layers(layers)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Of what a file may hold, with short forms that :func:`load_study` writes out."""
        schema = super().__get_pydantic_json_schema__(core, handler)
        properties = handler.resolve_ref_schema(schema)["properties"]
        of_run = handler(RunConfig.__pydantic_core_schema__)
        told = {"description": properties["base"]["description"]}
        properties["base"] = {"anyOf": [of_run, {"type": "string"}], **told}
        for name in ("arms", "tasks"):
            of_one = properties[name]["additionalProperties"]
            properties[name]["additionalProperties"] = {"anyOf": [of_one, {"type": "null"}]}
        properties["tasks"]["type"] = ["object", "array"]
        return schema

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Refuse what does not fit together; the baseline is the first arm if none is named."""
        self._refuse_names_alike()
        baseline = self.baseline or next(iter(self.arms))
        if baseline not in self.arms:
            raise ValueError(f"baseline '{baseline}' is not an arm; {nearest(baseline, self.arms)}")
        object.__setattr__(self, "baseline", baseline)
        self._check_contrasts()
        for name in ("name", "seed"):
            if name in self.base:
                raise ValueError(f"base must not set '{name}': the study sets it for every run")
        if ("data" in self.base) == (self.prepare is not None):
            raise ValueError(
                "give either base.data (a folder of prepared data) or prepare (text to prepare), not "
                + ("both" if self.prepare is not None else "neither")
            )
        if isinstance(self.base.get("data"), list | tuple):
            raise ValueError(
                "base.data is a mixture, and a study trains on one folder: prepare the texts together, with "
                "chronomask prepare TEXT TEXT --out FOLDER, and name that"
            )
        for what, values in (("seeds", self.seeds), ("task_seeds", self.task_seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} {list(values)} holds a seed twice")
        if self.curve_steps and not any(plan.curve for plan in self.tasks.values()):
            raise ValueError("curve_steps is given, but no task has 'curve: true'")
        return self

    def _check_contrasts(self) -> None:
        """Pairs of two arms that are there, each pair once, whichever way round."""
        seen: set[frozenset[str]] = set()
        for pair in self.contrasts:
            for name in pair:
                if name not in self.arms:
                    raise ValueError(
                        f"contrasts: '{name}' is not an arm; {nearest(name, self.arms)}"
                    )
            if len(set(pair)) < 2 or frozenset(pair) in seen:
                raise ValueError(
                    f"contrasts: [{', '.join(pair)}] compares an arm with itself, or is listed twice: "
                    "remove it"
                )
            seen.add(frozenset(pair))

    def _refuse_names_alike(self) -> None:
        """Arms name folders, and not every file system tells capitals apart; nor do readers see blanks."""
        seen: dict[str, str] = {}
        for name in self.arms:
            alike = normalize("NFKC", "".join(name.casefold().split()))
            other = seen.setdefault(alike, name)
            if other != name:
                raise ValueError(
                    f"the names of the arms '{other}' and '{name}' differ in capitals or blanks alone: "
                    "rename one of them"
                )

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """Fine-tuning seeds of a task."""
        return self.tasks[task].seeds or self.task_seeds

    def data_of(self, task: str) -> Path:
        """Folder with a task's files."""
        return Path(self.tasks[task].data or self.task_data)


def load_study(path: Path, changes: Sequence[Layer] = ()) -> StudyConfig:
    """The study in a YAML file, the run configs it names put in place, and ``changes`` laid over it.

    Raises UsageError, which blames each problem on the file or on the change that brought it.
    """
    for change in changes:
        if isinstance(change.values.get("base"), str):
            raise UsageError(f"{change.origin}: change fields of the base, such as base.steps=100")
    own = Layer.of_file(path)
    own = replace(own, values=_with_files(own.values, path.parent))
    return StudyConfig.from_layers([own, *changes])


def study_of(config: StudyConfig | Mapping[str, Any] | str | Path, **changes: Any) -> StudyConfig:
    """The study that a config, a dict of its keys, the path of one as YAML or a recipe's name stands for.

    ``changes``: keys that differ. Run configs named in a dict are looked for from the working folder.
    Raises UsageError.
    """
    if isinstance(config, str | Path):
        return StudyConfig.of(load_study(find_recipe(config, "study")), **changes)
    if isinstance(config, Mapping):
        return StudyConfig.of(_with_files(config, Path()), **changes)
    return StudyConfig.of(config, **changes)


def _with_files(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Values of a study with the run configs they name read from ``folder``, and short forms written out."""
    values = dict(given)
    if isinstance(values.get("base"), str):
        values["base"] = read_yaml(folder / as_a_shell_has_it(values["base"]))
    arms = values.get("arms")
    if isinstance(arms, Mapping):
        values["arms"] = {name: _arm(fields, folder) for name, fields in arms.items()}
    tasks = values.get("tasks")
    if isinstance(tasks, list | tuple):
        values["tasks"] = {str(task): {} for task in tasks}
    elif isinstance(tasks, Mapping):
        values["tasks"] = {str(task): plan or {} for task, plan in tasks.items()}
    return values


def _arm(fields: Any, folder: Path) -> Any:
    """An arm's fields with the run config it names put in place; an arm without fields is the base."""
    if isinstance(fields, Mapping) and isinstance(fields.get("base"), str):
        return {**fields, "base": read_yaml(folder / as_a_shell_has_it(fields["base"]))}
    return {} if fields is None else fields
