"""What an architecture's own code, or torch's compiler, raises in the middle of a run, told with a way on.

Any architecture that transformers has may be trained, and not all were tried with every precision, length of
rows and compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

from chronomask.errors import ChronomaskError, RunError
from chronomask.model.device import memory_lacking
from chronomask.model.open import fault_of_architecture, one_line
from chronomask.runs.continuation import goes_on
from chronomask.train.run import Run

__all__ = ["telling_what_fails"]

_COMPILERS = ("torch._dynamo.", "torch._inductor.")
"""Modules of torch whose errors are those of ``torch.compile``."""
_SHOWN = 300
"""Characters of a compiler's error, which goes on for pages."""


@contextmanager
def telling_what_fails(run: Run) -> Iterator[None]:
    """Raise RunError for an error of the compiler or of the code of the run's architecture."""
    try:
        yield
    except ChronomaskError:
        raise
    except Exception as error:
        if memory_lacking(error) is not None:
            raise
        kind = f"model type '{run.model.config.model_type}'"
        if any(each.__module__.startswith(_COMPILERS) for each in type(error).__mro__):
            clear_frames(error.__traceback__)  # which hold tensors
            raise RunError(
                f"{kind} cannot be compiled here ({type(error).__name__}: {one_line(error)[:_SHOWN]}): set "
                f"compile=never; then {goes_on()}"
            ) from error
        if (fault := fault_of_architecture(error)) is None:
            raise
        in_half = run.forward.precision == "bf16"
        raise RunError(
            f"transformers' code of {kind} failed ({fault}): "
            + ("set precision=fp32 and bf16_weights=false, or " if in_half else "")
            + "choose another model, such as bert or modernbert, in another output folder"
        ) from error
