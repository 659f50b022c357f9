"""What is trained, as a config: an architecture by name and sizes, or a checkpoint to train further.

Names are checked without importing transformers, whose import takes seconds: its source says which
architectures have a masked language model and which fields they take.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chronomask.config import Config
from chronomask.config_errors import unknown_key, unknown_name

__all__ = [
    "AttentionScope",
    "FromCheckpoint",
    "FromConfig",
    "ModelConfig",
    "fields_of",
    "masked_lm_types",
]

AttentionScope = Literal["documents", "row"]
"""What a token may attend to: its own document, or everything in its row."""


class FromConfig(Config):
    """A new model of a named architecture."""

    kind: Literal["config"] = "config"
    model_type: str = "bert"
    """a ``model_type`` of transformers that has a masked language model: bert, modernbert, …"""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """fields of the architecture's config class that differ from its defaults"""

    @field_validator("model_type")
    @classmethod
    def _is_known(cls, model_type: str) -> str:
        known = masked_lm_types()
        if known and model_type not in known:
            raise unknown_name(model_type, known)
        return model_type

    @model_validator(mode="before")
    @classmethod
    def _fields_are_overrides(cls, values: Any) -> Any:
        given = dict(values) if isinstance(values, Mapping) else {}
        for key in given.keys() - cls.model_fields.keys():
            known = fields_of(str(given.get("model_type", cls.model_fields["model_type"].default)))
            if known and key in known.accepted:
                raise unknown_key(cls, (key,), [*cls.model_fields, f"overrides.{key}"])
        return values

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        known = fields_of(self.model_type)
        for key in self.overrides if known else ():
            if known and key not in known.accepted:
                raise unknown_key(type(self), ("overrides", key), known.own)
        return self


class FromCheckpoint(Config):
    """A model to train further; its tokenizer must have the data's vocabulary."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    """a folder that ``AutoModelForMaskedLM.from_pretrained`` opens, with its tokenizer; or its name on the
    Hugging Face hub, ``owner/name``"""
    new_head: bool = False
    """whether a head that the model lacks is drawn anew; a model without one is refused otherwise"""
    longer_rows: bool = False
    """whether rows may be longer than the model's positions, which are then tiled (learned) or slowed down
    (rotary); such rows are refused otherwise"""


def _check_form(value: Any) -> Any:
    """A group of one of the kinds as it is; a type of model, a folder or a name in its place is refused with
    the group that is meant.
    """
    named = value.get("kind") if isinstance(value, Mapping) else value
    if not isinstance(named, str) or named in ("config", "checkpoint"):
        return value
    new, further = "{kind: config, model_type: %s}", "{kind: checkpoint, path: %s}"
    if "/" in named:
        meant = f"{further % named}, to train that model further"
    elif named in masked_lm_types():
        meant = f"{new % named}, for a new model of this type"
    else:
        meant = (
            f"{new % 'bert'}, for a new model of a type of transformers, or {further % 'OWNER/NAME'}, to "
            "train a model of the hub or in a folder further"
        )
    raise PydanticCustomError("no_model", "{meant}", {"meant": f"expected {meant}"})


ModelConfig = Annotated[
    FromConfig | FromCheckpoint, Field(discriminator="kind"), BeforeValidator(_check_form)
]
"""The union of what can be trained, distinguished by ``kind``."""


@cache
def masked_lm_types() -> tuple[str, ...]:
    """Every ``model_type`` that transformers has a masked language model of; empty if its source is not
    as expected, and then only building the model tells.
    """
    text = _source("models/auto/modeling_auto.py")
    _, found, rest = text.partition("\nMODEL_FOR_MASKED_LM_MAPPING_NAMES = OrderedDict(")
    listing, closed, _ = rest.partition("\n)\n")
    if not found or not closed:
        return ()
    try:
        return tuple(model_type for model_type, _ in ast.literal_eval(listing.strip()))
    except (SyntaxError, ValueError):
        return ()


class Fields(NamedTuple):
    """Names that an architecture's config class takes."""

    own: tuple[str, ...]
    """the fields it declares itself"""
    accepted: frozenset[str]
    """these, those of every architecture, other names, older keywords, and maybe some more"""


@cache
def fields_of(model_type: str) -> Fields | None:
    """The fields of an architecture's config class.

    None where its source does not tell them all, as where it extends another architecture's class; then
    only building the model does.
    """
    name = model_type.replace("-", "_")
    classes = _classes(f"models/{name}/configuration_{name}.py").values()
    base = _classes("configuration_utils.py").get("PreTrainedConfig")
    chosen = next((found for found in classes if _model_type(found) == model_type), None)
    if base is None or chosen is None or [ast.unparse(b) for b in chosen.bases] != [base.name]:
        return None
    accepted = {
        *_own_fields(base),
        *_own_fields(chosen),
        *_other_names(base),
        *_other_names(chosen),
    }
    return Fields(_own_fields(chosen), frozenset(accepted))


def _own_fields(config: ast.ClassDef) -> tuple[str, ...]:
    """Annotated fields of a class."""
    names = [
        s.target.id
        for s in config.body
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    ]
    return tuple(name for name in names if not name.startswith("_"))


def _other_names(config: ast.ClassDef) -> Iterator[str]:
    """Keys of ``attribute_map``, and every text that ``__post_init__`` may look up as a keyword."""
    for statement in config.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="attribute_map")], value=ast.Dict(keys=keys)):
                yield from (str(key.value) for key in keys if isinstance(key, ast.Constant))
            case ast.FunctionDef(name="__post_init__"):
                texts = (n.value for n in ast.walk(statement) if isinstance(n, ast.Constant))
                yield from (text for text in texts if isinstance(text, str) and text.isidentifier())


def _model_type(config: ast.ClassDef) -> Any:
    for statement in config.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="model_type")], value=ast.Constant(value=value)):
                return value
    return None


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """The classes of a source file of transformers by name; none if it cannot be read."""
    try:
        body = ast.parse(_source(file)).body
    except SyntaxError:
        return {}
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _source(file: str) -> str:
    """Text of a source file of transformers; empty if there is none."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return ""
    path = Path(spec.submodule_search_locations[0]) / file
    return path.read_text(encoding="utf-8") if path.is_file() else ""
