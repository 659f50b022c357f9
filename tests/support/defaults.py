"""Every default of every config key, as text: what a user gets who sets nothing.

    python -m tests.support.defaults > tests/assets/defaults.yaml

stores them again after a change that is meant.
"""

from __future__ import annotations

from typing import Any

import yaml
from pydantic_core import PydanticUndefined, to_jsonable_python

from chronomask.config import Config
from chronomask.config_errors import kinds_of
from chronomask.evaluate.tasks import REGISTRY
from docs.reference_pages import ROOTS, groups_below

__all__ = ["defaults"]


def defaults() -> dict[str, dict[str, Any]]:
    """Keys and defaults of each group, of runs, studies, preparations and tasks; a key that must be given
    is left out.
    """
    found = {}
    for name, (_, root, _) in ROOTS.items():
        for path, group in groups_below(root):
            kind = next(iter(kinds_of([group])), "")
            found[" ".join(filter(None, [name, path, kind and f"kind {kind}"]))] = of_group(group)
    for name, task in REGISTRY.items():
        found[f"task {name}"] = task.config.to_dict()
    return {name: values for name, values in found.items() if values}


def of_group(group: type[Config]) -> dict[str, Any]:
    """Defaults of one group, its ``kind`` left out."""
    given = {
        key: field.get_default(call_default_factory=True)  # type: ignore[call-arg]
        for key, field in group.model_fields.items()
        if key != "kind"
    }
    return {
        key: to_jsonable_python(value)
        for key, value in given.items()
        if value is not PydanticUndefined
    }


if __name__ == "__main__":
    print(yaml.safe_dump(defaults(), sort_keys=False, allow_unicode=True), end="")
