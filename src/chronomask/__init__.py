"""chronomask: pre-train masked language models with masking that changes over training.

``import chronomask as cm`` imports nothing else: each name below is imported when it is first used. Where
a name is also that of a room, as ``cm.prepare`` is, the room can be called. Type checkers and editors read
the same names in ``__init__.pyi``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.3.0"

_HOMES = {
    "chronomask.data.loader": ("RowLoader",),
    "chronomask.data.mixture": ("open_data",),
    "chronomask.errors": ("ChronomaskError", "DataError", "RunError", "UsageError"),
    "chronomask.integrations.lightning": ("TimeVariantMasking",),
    "chronomask.integrations.order": ("KeyedLoader", "with_row_ids"),
    "chronomask.integrations.step": ("StepMasking",),
    "chronomask.integrations.transformers": ("TimeVariantTrainer",),
    "chronomask.integrations.workers": ("MaskedLoader",),
    "chronomask.masking.config": ("MaskingConfig",),
    "chronomask.masking.masker": ("Masker",),
    "chronomask.masking.rows": ("RowCollator",),
    "chronomask.masking.tally": ("score", "weighted_sum"),
    "chronomask.prepare.config": ("PrepareConfig",),
    "chronomask.prepare.classes": ("add_classes",),
    "chronomask.runs.read": ("read_run", "read_runs"),
    "chronomask.runs.result": ("TaskResult",),
    "chronomask.show.show": ("inspect_text",),
    "chronomask.study.config": ("StudyConfig",),
    "chronomask.train.config": ("RunConfig",),
    "chronomask.train.loop": ("pretrain",),
    "chronomask.types": ("UPOS_CLASSES", "MaskedBatch", "Rows"),
}
_FUNCTION_OF_ROOM = {
    "adapt": ("chronomask.adapt", "adapt"),
    "evaluate": ("chronomask.evaluate.evaluate", "evaluate"),
    "prepare": ("chronomask.prepare.pipeline", "prepare"),
    "report": ("chronomask.study.command", "report"),
    "study": ("chronomask.study.command", "study"),
}
_MODULES = {name: f"chronomask.masking.{name}" for name in ("content", "ratio", "strategy")}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME_OF, *_FUNCTION_OF_ROOM, *_MODULES])  # pyright: ignore


def __getattr__(name: str) -> Any:
    """Import ``name`` from its home; raises AttributeError with the nearest name."""
    if name in _FUNCTION_OF_ROOM:
        return import_module(f"chronomask.{name}")
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    else:
        from chronomask.errors import nearest

        raise AttributeError(f"chronomask has no attribute {name!r}; {nearest(name, __all__)}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(
        {name for name in globals() if name.startswith("_")} | {*__all__, *_FUNCTION_OF_ROOM}
    )


class _Room(ModuleType):
    """A subpackage that can be called: it calls the function that does its work."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the room's own function says."""
        return _function_of(self)(*args, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which is given the function by its name, as any other."""
        return import_module, (self.__name__,)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(_function_of(self))


def _function_of(room: ModuleType) -> Any:
    module, name = _FUNCTION_OF_ROOM[room.__name__.rpartition(".")[2]]
    return getattr(import_module(module), name)


class _Package(ModuleType):
    """Makes rooms callable as Python binds them to the package, whoever imports them first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FUNCTION_OF_ROOM and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
