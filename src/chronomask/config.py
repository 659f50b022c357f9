"""Base of every part's configuration: frozen values, read from YAML, changed by dotted overrides.

A part's config is a :class:`Config` subclass in the part's own file; where a part has several kinds, they
form a family of :class:`Alternative`. Nothing in a file is ever imported or executed. Unknown keys and
values are refused before any work starts, with the nearest valid name, and blamed on what gave them: a
file, a flag, an override. A kind's name stands for its group with the defaults: ``content: ptw``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    InitErrorDetails,
    PydanticCustomError,
    PydanticKnownError,
    core_schema,
)

from chronomask.config_errors import (
    describe_problem,
    kinds_of,
    meanings_of,
    root_causes,
)
from chronomask.config_layers import Layer, overlay, with_kinds
from chronomask.errors import UsageError, printable, shown
from chronomask.recipes import find_recipe
from chronomask.storage import as_a_shell_has_it
from chronomask.yaml_text import as_yaml, control_character

__all__ = [
    "Alternative",
    "Config",
    "Seed",
    "diff",
    "differences",
    "is_reading_stored",
    "json_schema",
    "kind_of",
]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed: what keys random numbers."""


class Config(BaseModel):
    """A frozen value with known keys only; equal configs compare equal.

    Numbers are finite, truth values are no numbers, and text holds no control characters.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def __init__(self, /, **values: Any) -> None:
        """A config of values, plain or typed; raises :class:`UsageError` for values that cannot be."""
        cls = type(self)
        values = with_kinds(cls, values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            if _VALIDATING.get():
                raise  # the config that this one is made for tells of it, with the place
            layers = [Layer(f"the {cls.__name__}", values)]
            raise UsageError(printable(_explain(cls, error, values, layers))) from None

    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply ``a.b.c=value`` overrides; raises :class:`UsageError`."""
        return cls.from_layers([Layer.of_file(path), *map(Layer.of_override, overrides)])

    @classmethod
    def of(cls, value: Any, **changes: Any) -> Self:
        """The config that ``value`` stands for.

        ``value``: a config, a mapping of its keys, the path of a YAML file, the name of a recipe, or a
        list of these, each changing those before it; ``changes``: values, plain or typed, laid over all of
        them as :func:`merge` does. Raises :class:`UsageError`.
        """
        if isinstance(value, cls) and not changes:
            return value
        parts = value if isinstance(value, list | tuple) else [value]
        first = [cls._layer_of(part) for part in parts]
        plain = _plain(changes).items()
        later = [Layer(f"{key}={shown(item)}", {key: item}) for key, item in plain]
        return cls.from_layers([*first, *later])

    @classmethod
    def _layer_of(cls, value: Any) -> Layer:
        if isinstance(value, cls | Mapping):
            return Layer(f"the {cls.__name__}", _plain(value))
        if isinstance(value, str | Path):
            return Layer.of_file(find_recipe(value))
        raise UsageError(
            f"{shown(value)} is not a {cls.__name__}: give one, a dict of its keys, the path of a YAML file, "
            "or the name of a recipe"
        )

    @classmethod
    def parse_with(
        cls, values: Mapping[str, Any], overrides: Sequence[str], where: str = "the configuration"
    ) -> Self:
        """Validate plain values changed by overrides, which may name defaults not written out."""
        return cls.from_layers([Layer(where, values), *map(Layer.of_override, overrides)])

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Self:
        """Validate the values of several layers, each laid over those before as :func:`merge` does.

        The first must be whole groups; later ones may change single values, defaults included. Raises
        UsageError that blames each problem on the layer that brought it.
        """
        for layer in layers:
            if not isinstance(layer.values, Mapping):
                raise UsageError(
                    f"{layer.origin} is {shown(layer.values)}; expected keys and values"
                )
        values = overlay(cls, layers)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(printable(_explain(cls, error, values, layers))) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "the configuration") -> Self:
        """Validate plain values; ``where`` names their origin in errors. Raises UsageError."""
        return cls.from_layers([Layer(where, values)])

    @classmethod
    def parse_stored(cls, values: Mapping[str, Any], where: str) -> Self:
        """:meth:`parse` what a run was begun with; what is refused of a run that is to begin passes where
        :func:`is_reading_stored` is asked.
        """
        token = _READING_STORED.set(True)
        try:
            return cls.parse(values, where)
        finally:
            _READING_STORED.reset(token)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values with every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """YAML text that :meth:`load` reads back to an equal config."""
        return as_yaml(self.to_dict())

    def replace(self, overrides: Sequence[str]) -> Self:
        """A validated copy with dotted overrides applied."""
        return self.parse_with(self.to_dict(), overrides)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with values changed, which are not validated; cached properties are worked out anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del vars(copied)[name]
        return copied

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core)
        group = handler.resolve_ref_schema(schema)
        group["patternProperties"] = {r"\.": True}  # dotted keys reach into groups
        group.pop("required", None)  # a file may hold changes alone
        properties = group.get("properties", {})
        meanings = meanings_of(cls)
        for name in properties.keys() & meanings.keys():
            properties[name]["description"] = _without_marks(meanings[name])
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_surprises(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(values, Mapping):
            values = {name: _in_home_folder(value) for name, value in values.items()}
        token = _VALIDATING.set(True)
        try:
            config = handler(values)
        finally:
            _VALIDATING.reset(token)
        if isinstance(values, Mapping):
            made = {name: getattr(config, name, None) for name in values}
            surprises = list(_surprises(values, made))
            if surprises:
                raise ValidationError.from_exception_data(cls.__name__, surprises)
        return config


def _in_home_folder(value: Any) -> Any:
    """A path that begins with ``~/``, or the items of a list, as a shell has them; else the value itself."""
    if type(value) in (list, tuple):
        return type(value)(map(_in_home_folder, value))
    if isinstance(value, str | Path) and str(value).startswith("~/"):
        return type(value)(as_a_shell_has_it(value))
    return value


def _plain(value: Any) -> Any:
    """A value with the configs in it as dictionaries and the paths as text; all else stays as it is."""
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class Alternative(Config):
    """Base of configs of which a field takes one, told apart by ``kind``.

    A *family* is a subclass that declares what its members can do, and has no ``kind``; its *members* are
    the subclasses that have one. Nothing else is written down: a field whose type is the family takes

    - keys with a ``kind``, as a file has them, of any member that this process has defined, in this
      package or outside; no import path in a file is ever followed;
    - an instance of any subclass of the family.

    A family may lie within another (schedules of progress alone among all schedules): its members belong
    to both. ::

        class Shape(Alternative):
            @abstractmethod
            def area(self) -> float: ...

        class Square(Shape):
            kind: Literal["square"] = "square"
            side: float = 1.0

            def area(self) -> float:
                return self.side**2

        class Drawing(Config):
            shape: Shape = Square()

        Drawing.parse({"shape": {"kind": "square", "side": 2}})

    A member is known once its module is imported: where a family is spread over several files, the file
    with the field must import them all. Defining a second class of a kind raises TypeError, and so does
    making a value of a class without one; the same class may be defined again, as in a notebook.
    """

    _members: ClassVar[dict[str, type[Alternative]]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls._is_family():
            raise TypeError(
                f"{_place_of(cls)} has no kind, so no config could name it: give it one, as in  "
                "kind: Literal['name'] = 'name'"
            )
        return super().__new__(cls)

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """The members of a family by kind, in the order in which they were defined."""
        return dict(cls._members)  # pyright: ignore[reportReturnType]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Let the families of a new member know it, or begin a new family; raises TypeError."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls._is_family():
            cls._members = {}
            return
        kinds = kinds_of([cls])
        if not kinds:
            raise TypeError(
                f"the kind of {_place_of(cls)} is not a literal: write  kind: Literal['name'] = 'name'"
            )
        families = [base for base in cls.__mro__[:-1] if issubclass(base, Alternative)]
        for family in families:
            if family is Alternative or not family._is_family():
                continue
            for kind in kinds:
                taken = family._members.get(kind)
                if taken is not None and _place_of(taken) != _place_of(cls):
                    raise TypeError(
                        f"{_place_of(cls)} has the kind {kind!r} of {_place_of(taken)}: give it one of its "
                        "own, as in  kind: Literal['name'] = 'name'"
                    )
                family._members[kind] = cls

    @classmethod
    def _is_family(cls) -> bool:
        return "kind" not in cls.model_fields

    @classmethod
    def _choose(cls, value: Any) -> Alternative:
        """The member of this family that a value is or stands for."""
        if isinstance(value, cls):
            return value
        if isinstance(value, type) and issubclass(value, cls):
            raise PydanticCustomError("a_class", "expected a value, not a class: add parentheses")
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_attributes_type")
        if "kind" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in cls._members:
            context = {
                "discriminator": "'kind'",
                "tag": str(kind),
                "expected_tags": ", ".join(cls._members),
            }
            raise PydanticKnownError("union_tag_invalid", context)
        return cls._members[kind].model_validate(dict(value))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not cls._is_family():
            return handler(source)
        # By its own class, not by the family's fields.
        as_itself = core_schema.simple_ser_schema("any")
        return core_schema.no_info_plain_validator_function(cls._choose, serialization=as_itself)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Of a family: the groups of its members, or one of their names."""
        begun = _SCHEMAS_BEGUN.get()
        if not cls._is_family():
            token = _SCHEMAS_BEGUN.set((*begun, cls))
            try:
                return super().__get_pydantic_json_schema__(core, handler)
            finally:
                _SCHEMAS_BEGUN.reset(token)
        # Members may hold their own family: one whose schema has begun is referred to, not begun again.
        schemas = {kind: member.__pydantic_core_schema__ for kind, member in cls._members.items()}
        choices = {
            kind: core_schema.definition_reference_schema(_reference(schema))
            if cls._members[kind] in begun
            else schema
            for kind, schema in schemas.items()
        }
        groups = handler(core_schema.tagged_union_schema(choices, "kind"))
        # A kind's name alone is its group, and a file over another may change a group of any kind.
        of_any_kind = {"type": "object", "not": {"required": ["kind"]}}
        return {"anyOf": [groups, {"enum": list(choices)}, of_any_kind]}


def kind_of(member: Alternative) -> str:
    """The kind of a family's member, for messages; what it can do, its methods say."""
    return member.kind  # pyright: ignore[reportAttributeAccessIssue]


_READING_STORED: ContextVar[bool] = ContextVar("reading stored", default=False)


def is_reading_stored() -> bool:
    """Whether the config that is being validated is one that a run stored, by :meth:`Config.parse_stored`.

    Values that earlier versions took, and that are refused of new runs, are accepted then.
    """
    return _READING_STORED.get()


_VALIDATING: ContextVar[bool] = ContextVar("validating", default=False)
"""Whether a config is being validated, so that another is made for it."""

_SCHEMAS_BEGUN: ContextVar[tuple[type[Config], ...]] = ContextVar("schemas begun", default=())
"""Members whose JSON Schema is being made, one within another."""


def _reference(schema: CoreSchema) -> str:
    """The name by which the JSON Schema of a model is referred to."""
    while "ref" not in schema:
        schema = schema["schema"]  # pyright: ignore
    return schema["ref"]


def _without_marks(text: str) -> str:
    """A docstring's text on one line: names of code without the marks that Sphinx reads."""
    return " ".join(re.sub(r"(:\w+:)?`+~?([^`]*)`+", r"\2", text).split())


def _place_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _surprises(given: Any, made: Any, at: tuple[str | int, ...] = ()) -> Iterator[InitErrorDetails]:
    """Values that validation would let pass: true where a number is meant, and what YAML text may not
    hold either. ``made`` is what ``given`` became; a config within it has looked at its own values.
    """
    problem = None
    if isinstance(made, Config):
        return
    if isinstance(given, Mapping):
        for key, item in given.items():
            yield from _surprises(
                item, made.get(key) if isinstance(made, Mapping) else None, (*at, key)
            )
    elif isinstance(given, list | tuple):
        pairs = made if isinstance(made, list | tuple) and len(made) == len(given) else given
        for number, (item, became) in enumerate(zip(given, pairs, strict=True)):
            yield from _surprises(item, became, (*at, number))
    elif isinstance(given, bool):
        if isinstance(made, int | float) and not isinstance(made, bool):
            problem = "expected a number, not true or false"
    elif isinstance(given, float):
        if not math.isfinite(given):
            problem = "expected a finite number"
    elif isinstance(given, str):
        code = control_character(given)
        if code is not None:
            problem = f"it holds the control character or line break {code}: remove it"
    if problem is not None:
        yield {"type": PydanticCustomError("surprise", problem), "loc": at, "input": given}  # pyright: ignore


def diff(left: Config, right: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values (None where a key is absent)."""
    return differences(left.to_dict(), right.to_dict())


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """As :func:`diff`, of configs as dictionaries, which may be of another version."""
    a, b = dict(_leaves(left)), dict(_leaves(right))
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(
    cls: type[Config], error: ValidationError, values: Mapping[str, Any], layers: Sequence[Layer]
) -> str:
    """One sentence per problem, behind the origin of the layer that brought it."""
    by_origin: dict[str, list[str]] = {}
    for path, item in root_causes(error, values):
        origin = _origin(cls, item, values, layers)
        text = describe_problem(cls, path, item, values)
        said = by_origin.setdefault(origin, [])
        # Keys of one group have one list of valid names, which one of them tells.
        listing = re.search(r"valid: .*", text, re.IGNORECASE)
        if listing is not None and any(listing[0].lower() in other.lower() for other in said):
            text = text[: listing.start()].rstrip("; ")
        said.append(text)
    return "; ".join(f"{origin}: {'; '.join(texts)}" for origin, texts in by_origin.items())


def _origin(
    cls: type[Config], item: ErrorDetails, values: Mapping[str, Any], layers: Sequence[Layer]
) -> str:
    """Where a problem comes from: the first layer with which it appears.

    What earlier layers lack because a later one brings it is filled in, so that it hides nothing.
    """
    at = item["loc"][0] if item["loc"] else None
    required = {
        name: values[name]
        for name, field in cls.model_fields.items()
        if field.is_required() and name in values and name != at
    }
    for number, layer in enumerate(layers[:-1], start=1):
        try:
            cls.model_validate(required | overlay(cls, layers[:number]))
        except ValidationError as error:
            if any(_is_same(item, other) for other in error.errors(include_url=False)):
                return layer.origin
    return layers[-1].origin


def _is_same(item: ErrorDetails, other: ErrorDetails) -> bool:
    if (item["type"], item["loc"], item["msg"]) != (other["type"], other["loc"], other["msg"]):
        return False
    return isinstance(item["input"], Mapping) or item["input"] == other["input"]


def json_schema(cls: type[Config]) -> dict[str, Any]:
    """JSON Schema of a config class, for editors that complete and check YAML.

    It lets through dotted keys and groups without the keys that they need: a file may lie over another one.
    """
    return {"$schema": GenerateJsonSchema.schema_dialect, **TypeAdapter(cls).json_schema()}
