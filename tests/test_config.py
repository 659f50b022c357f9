"""Configs: one grammar for changes, files read with care, refusals that name place and way out."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from chronomask.config import Alternative, Config, json_schema, kind_of
from chronomask.config_layers import Layer, merge, nested, parse_override, read_yaml
from chronomask.errors import DataError, RunError, UsageError, harmless, nearest, shown
from chronomask.yaml_text import MAX_BYTES, as_yaml, from_yaml


class Straight(Config):
    kind: Literal["straight"] = "straight"
    start: Annotated[float, Field(ge=0, le=1)]
    end: Annotated[float, Field(ge=0, le=1)] = 0.1


class Level(Config):
    kind: Literal["level"] = "level"
    base: Annotated[float, Field(ge=0, le=1)] = 0.15


Course = Annotated[Straight | Level, Field(discriminator="kind")]


class Part(Config):
    until: float
    course: Course


class Whole(Config):
    """One of everything that configs of this package hold."""

    data: str
    steps: Annotated[int, Field(ge=1)] = 10
    half: int = 5
    course: Course = Level()
    probability: Annotated[float, Field(ge=0, le=1)] | Course = 0.8
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    flag: bool = False
    free: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Whole:
        if self.half > self.steps:
            raise ValueError(f"half {self.half} is more than steps {self.steps}")
        return self


def refusal_of(values: dict[str, Any], *overrides: str) -> str:
    """The sentence with which values are refused; ``data`` is given, the file is called f.yaml."""
    with pytest.raises(UsageError) as refused:
        Whole.parse_with({"data": "d", **values}, overrides, where="f.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("masking.ratio.base=0.3", "masking.ratio.base", 0.3),
        (" steps = 5", "steps", 5),
        ("a.b={kind: x, list: [1, two]}", "a.b", {"kind": "x", "list": [1, "two"]}),
        ("name=a=b", "name", "a=b"),
        ("a=", "a", None),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, path: str, value: object) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(UsageError, match=r"not of the form key\.subkey=value"):
        parse_override(text)


@pytest.mark.parametrize("values", [5, "steps: 5", ["steps"], None])
def test_values_that_are_no_mapping_are_refused(values: Any) -> None:
    with pytest.raises(UsageError, match=r"the configuration is .*; expected keys and values"):
        Whole.parse(values)


class Places(Config):
    one: str
    path: Path
    several: tuple[str, ...] = ()


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"one": "~/a", "path": "~/b", "several": ["~/c", "d~/e", "~"]}
    file = tmp_path / "places.yaml"
    file.write_text(as_yaml(given))
    there = Places(one=f"{tmp_path}/a", path=tmp_path / "b", several=(f"{tmp_path}/c", "d~/e", "~"))
    assert Places.load(file) == there
    assert Places.of("~/places.yaml") == Places.of(given) == Places(**given) == there
    monkeypatch.chdir(tmp_path)
    Path("~").mkdir()
    Path("~/a").touch()
    assert Places.of(given).one == "~/a"  # a file of that very name


def test_what_was_read_of_a_file_may_be_changed_and_so_may_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {kind: config, layers: [1, 2]}\nmasking.ratio.base: 0.3")
    first = read_yaml(path)
    first["model"]["layers"].append(3)
    first["masking"]["ratio"]["base"] = 0.5
    second = {"model": {"kind": "config", "layers": [1, 2]}, "masking": {"ratio": {"base": 0.3}}}
    assert read_yaml(path) == second
    path.write_text("steps: 7")
    assert read_yaml(path) == {"steps": 7}


def test_dotted_keys_mean_groups_of_keys() -> None:
    assert nested({"a.b.c": 1, "a.d": 2, "e": {"f.g": 3}}) == {
        "a": {"b": {"c": 1}, "d": 2},
        "e": {"f.g": 3},
    }


def test_a_kind_that_changes_drops_what_belonged_to_the_one_before() -> None:
    before = {"ratio": {"kind": "constant", "base": 0.2}}
    assert merge(before, nested({"ratio.kind": "linear"})) == {"ratio": {"kind": "linear"}}
    assert merge(before, nested({"ratio.kind": "constant"})) == before
    for order in (1, -1):
        changes = dict([("ratio.kind", "linear"), ("ratio.start", 0.3)][::order])
        assert merge(before, nested(changes)) == {"ratio": {"kind": "linear", "start": 0.3}}


def test_a_kind_that_comes_back_has_its_defaults() -> None:
    first = Layer("a", {"data": "d", "course": {"kind": "straight", "start": 0.5, "end": 0.4}})
    there, back = ({"course": {"kind": kind}} for kind in ("level", "straight"))
    last = Layer("d", {"course.start": 0.3})
    config = Whole.from_layers([first, Layer("b", there), Layer("c", back), last])
    assert config.course == Straight(start=0.3)
    assert Whole.from_layers([first, Layer("c", back), last]).course == Straight(start=0.3, end=0.4)


def test_an_empty_group_empties_what_is_there() -> None:
    values = {"overrides": {"hidden_size": 1}, "other": {"a": 1}}
    assert merge(values, dict([parse_override("overrides={}")])) == {**values, "overrides": {}}
    assert merge(values, {}) == values


def test_an_emptied_group_stays_so_if_something_is_put_into_it() -> None:
    """In the order in which they are written, also where one of them is a group with kinds."""
    first = Whole(data="d", free={"a": {"b": 1}, "c": 2}, course=Straight(start=0.5, end=0.4))
    assert first.replace(["free={}", "free.a.d=3"]).free == {"a": {"d": 3}}
    assert first.replace(["free.a={}", "free.a.d=3"]).free == {"a": {"d": 3}, "c": 2}
    assert first.replace(["free.a.d=3", "free={}"]).free == {}
    for changes in (["course={}"], ["course={}", "course.start=0.3"]):
        with pytest.raises(UsageError, match="course needs a 'kind'"):
            first.replace(changes)
    assert first.replace(["course={}", "course.kind=straight", "course.start=0.3"]).course == (
        Straight(start=0.3)
    )


def test_one_change_in_every_place_it_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    expected = Whole(data="d", course=Level(base=0.3))
    for text in (
        "data: d\ncourse: {kind: level, base: 0.3}",
        "data: d\ncourse.kind: level\ncourse.base: 0.3",
        "course.base: 0.3\ndata: d\ncourse: {kind: level}",
        '{"data": "d", "course": {"kind": "level", "base": 3e-1}}',
    ):
        file.write_text(text)
        assert Whole.load(file) == expected
    file.write_text("data: d")
    assert Whole.load(file, ["course.base=0.3"]) == expected
    change = Layer("change.yaml", {"course.base": 0.3})
    assert Whole.from_layers([Layer.of_file(file), change]) == expected
    assert Whole(data="d").replace(["course.base=0.3"]) == expected


def test_defaults_can_be_changed_before_what_is_required_is_there() -> None:
    made = Whole.parse_with({}, ["course.base=0.3", "data=d"])
    assert made == Whole(data="d", course=Level(base=0.3))


def test_the_name_of_a_kind_stands_for_its_group(tmp_path: Path) -> None:
    by_name = Whole.parse({"data": "d", "course": "level"})
    assert by_name == Whole.parse({"data": "d", "course": {"kind": "level"}})
    assert Whole.parse_with({"data": "d", "course": "level"}, ["course.base=0.4"]) == Whole(
        data="d", course=Level(base=0.4)
    )
    assert Whole.parse_with({"data": "d"}, ["course=level", "course.base=0.4"]) == Whole(
        data="d", course=Level(base=0.4)
    )
    assert Whole.parse({"data": "level"}).data == "level"  # what is no group stays as it is
    assert "did you mean 'level'?" in refusal_of({"course": "levl"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bogus", None), ("cola", None), ("limit", None), ("setps", "steps"), ("max_steps", "steps"),
        ("Hour", "hours"), ("compiel", "compile"), ("wramup", "length_warmup"), ("fp61", "fp16"),
    ],
)  # fmt: skip
def test_a_name_is_suggested_where_it_is_near(name: str, meant: str | None) -> None:
    valid = ["steps", "hours", "compile", "length_warmup", "fp16"]
    said = nearest(name, valid)
    assert said.startswith("valid: " if meant is None else f"did you mean '{meant}'? Valid: ")


def test_valid_names_are_listed_once() -> None:
    refusal = refusal_of({"stepz": 1, "dat": "d", "course": {"kind": "level", "bse": 1}})
    assert refusal.count("Valid: data, steps, half") == 1
    assert "unknown key 'dat'; did you mean 'data'?" in refusal
    assert "unknown key 'course.bse'; did you mean 'base'? Valid: kind, base" in refusal


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"stepz": 1}, "unknown key 'stepz'; did you mean 'steps'? Valid: data, steps, half"),
        ({"steps": 1.5}, "steps is 1.5: it should be a valid integer"),
        ({"steps": None}, "steps has no value: give one, or leave the key out where it has a default"),
        ({"course": None}, "course has no value: give one, or leave the key out"),
        ({"probability": None}, "probability has no value: give one, or leave the key out"),
        ({"steps": True}, "steps is true: expected a number"),
        ({"steps": math.inf}, "steps is inf: it should be a finite number"),
        ({"course": {"base": 0.3}}, "course needs a 'kind', got {'base': 0.3}; valid: straight, level"),
        ({"course": {"kind": "lvl"}}, "course.kind is 'lvl'; did you mean 'level'? Valid: straight"),
        ({"course": {"kind": "level", "bse": 1}}, "unknown key 'course.bse'; did you mean 'base'?"),
        ({"course": {"kind": "level", "base": 2}}, "course.base is 2: it should be less than or equal"),
        ({"course": {"kind": "straight"}}, "'course.start' is missing"),
        ({"probability": 1.5}, "probability is 1.5: it should be less than or equal to 1"),
        ({"probability": [1]}, "probability is [1]: it should be a valid number"),
        ({"probability": {"kind": "lvl"}}, "probability.kind is 'lvl'; did you mean 'level'?"),
        ({"probability": {"kind": "level", "base": 2}}, "probability.base is 2: it should be"),
        ({"parts": [{"until": 1, "course": {"kind": "level", "base": 2}}]}, "parts.0.course.base is 2"),
        ({"parts": []}, "parts is []; expected at least 1 value, and there are 0"),
        ({"parts": ["level"]}, "parts.0 is 'level'; expected a group of keys"),
        ({"parts": 3}, "parts is 3; expected a list: [3]"),
        ({"device": "cdua"}, "device is 'cdua'; did you mean 'cuda'? Valid: cpu, cuda"),
        ({"data": 15}, "data is 15; expected text: put it in quotes"),
        ({"data": False}, "data is false; expected text: put it in quotes"),
        ({"data": "a\nb"}, "data is 'a\\nb': it holds the control character or line break U+000A"),
        ({"free": {"a": [{"b": "\x1b[2J"}]}}, "free.a.0.b is '\\x1b[2J': it holds the control"),
        ({"free": {"a": math.nan}}, "free.a is nan: expected a finite number"),
        ({"half": 20}, "half 20 is more than steps 10"),
        ({"data": "x" * 500, "steps": "y" * 500}, " … "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_as_it_stands_in_the_file(values: dict, sentence: str) -> None:
    refusal = refusal_of(values)
    assert refusal.startswith("f.yaml: ")
    assert sentence in refusal
    assert len(refusal.splitlines()) == 1
    assert refusal.count("f.yaml") == 1
    if "; " not in sentence:
        assert "; " not in refusal.removeprefix(f"f.yaml: {sentence}").partition("Valid:")[0]
    for value in ("x" * 100, "y" * 100):
        assert value not in refusal
    whole: dict[str, Any] = {"data": "d", **values}
    with pytest.raises(UsageError) as in_python:
        Whole(**whole)
    assert str(in_python.value) == refusal.replace("f.yaml: ", "the Whole: ")


def test_in_python_a_config_takes_what_a_file_does() -> None:
    values: list[dict[str, Any]] = [
        {"course": {"kind": "level", "base": 0.4}},
        {"course": "level"},
        {"parts": [{"until": 1, "course": "level"}]},
    ]
    expected = [
        Whole(data="d", course=Level(base=0.4)),
        Whole(data="d", course=Level()),
        Whole(data="d", parts=(Part(until=1, course=Level()),)),
    ]
    for said, made in zip(values, expected, strict=True):
        assert Whole(data="d", **said) == made == Whole.parse({"data": "d", **said})


def test_the_dots_of_a_groups_keys_are_taken_apart() -> None:
    part = {"until": 1, "course.kind": "level", "course.base": 0.4}
    made = Whole.parse({"data": "d", "parts": [part], "free": {"a.b": 1}})
    assert made.parts == (Part(until=1, course=Level(base=0.4)),)
    assert made.free == {"a.b": 1}  # whose keys are names
    assert "unknown key 'parts.0.course.bse'; did you mean 'base'?" in refusal_of(
        {"parts": [part | {"course.bse": 1}]}
    )


def test_true_is_no_number_in_python_either() -> None:
    with pytest.raises(UsageError, match="not true or false"):
        Level(base=True)
    assert Whole(data="d", flag=True, free={"a": True}).free == {"a": True}


@pytest.mark.parametrize(
    ("values", "overrides", "origin"),
    [
        ({"steps": "many"}, ["half=1"], "f.yaml: steps is 'many'"),
        ({}, ["half=1", "steps=many"], "--set steps=many: steps is 'many'"),
        ({"steps": "many"}, ["steps=few"], "--set steps=few: steps is 'few'"),
        ({"half": 20}, ["device=cuda"], "f.yaml: half 20"),
        ({}, ["device=cuda", "half=20"], "--set half=20: half 20"),
        ({"steps": 30, "half": 20}, ["steps=10"], "--set steps=10: half 20"),
        ({}, ["course.kind=straight"], "--set course.kind=straight: 'course.start' is missing"),
        ({}, ["course.bse=1"], "--set course.bse=1: unknown key 'course.bse'; did you mean 'base'?"),
        ({}, ["data=3"], "--set data=3: data is 3"),
        ({"half": "x"}, ["steps=y"], "it should be a valid integer; f.yaml: half is 'x'"),
        ({}, ["parts.0=1"], "--set parts.0=1: parts is {'0': 1}"),
    ],
)  # fmt: skip
def test_blame_goes_to_what_gave_the_value(values: dict, overrides: list[str], origin: str) -> None:
    assert origin in refusal_of(values, *overrides)


def test_blame_among_files_and_flags() -> None:
    layers = [
        Layer("base.yaml", {"steps": 4, "half": 3}),
        Layer("arm.yaml", {"course": {"kind": "level", "base": 7}}),
        Layer("--data D", {"data": "D"}),
        Layer("--steps 2", {"steps": 2}),
    ]
    with pytest.raises(UsageError, match=r"^arm.yaml: course.base is 7: .*$"):
        Whole.from_layers(layers)
    del layers[1]
    with pytest.raises(UsageError, match=r"^--steps 2: half 3 is more than steps 2$"):
        Whole.from_layers(layers)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e4", 10000.0), ("1e-5", 1e-5), ("-.5E+1", -5.0), ("1_000", 1000), ("0x1F", 31), ("0", 0),
        ("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("2024-13-45", "2024-13-45"),
        ("yes", True), ("no", False), ("~", None), ("", None), ("'1e4'", "1e4"), ("1e", "1e"),
        ("!!str 5", "5"), ("!!float 5", 5.0), ("[1, {a: b}]", [1, {"a": "b"}]), ("<<", "<<"),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    read = from_yaml(text, "f")
    assert read == value
    assert type(read) is type(value)


def test_numbers_written_with_an_exponent_count(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("data: d\nsteps: 1e4\ncourse: {kind: level, base: 1e-1}\n")
    made = Whole.load(tmp_path / "f.yaml")
    assert (made.steps, made.course) == (10_000, Level(base=0.1))


def test_keys_are_text_as_written() -> None:
    text = "{no: 1, 15: 2, 0.30: 3, 1e4: 4, true: 5, ~: 6}"
    assert from_yaml(text, "f") == {"no": 1, "15": 2, "0.30": 3, "1e4": 4, "true": 5, "~": 6}


def test_a_group_of_keys_shared_by_its_anchor() -> None:
    text = "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [*x, {q: 4, r: 5}]}"
    assert from_yaml(text, "f") == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": 1, "q": 2, "r": 5},
    }


BOMB = "a0: &a0 [1, 2]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' is given twice"),
        ("a:\n  b: {c: 1, d: 2,\n    c: 3}", "line 3: key 'c' is given twice"),
        ("a: 1\nb: .inf", "line 2: '.inf' is not a finite number"),
        ("a: 1\nb: [1e400]", "line 2: '1e400' is not a finite number"),
        ("a: 1\nb: -.INF", "line 2: '-.INF' is not a finite number"),
        ("a: 1\nb: .nan", "line 2: '.nan' is not a finite number"),
        ("a: 1\nb: " + "9" * 5000, "line 2: '9999"),
        ("a: 1\nb: !!int x", "line 2: 'x' is not what its tag '!!int' says"),
        ("a: 1\nb: !!bool x", "line 2: 'x' is not what its tag '!!bool' says"),
        ("a: 1\nb: !!timestamp 2024-13-45", "line 2: the tag '!!timestamp' is not allowed"),
        ("a: 1\nb: !!binary aGk=", "line 2: the tag '!!binary' is not allowed"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "line 2: the tag '!!python/object"),
        ('a: 1\nb: "x\\ny"', "line 2: 'x\\ny' holds the control character or line break U+000A"),
        ('a: 1\n"b\\u0007": 1', "line 2: 'b\\x07' holds the control character"),
        ("a: 1\nb: \x01", "line 2: character U+0001 is not allowed"),
        ("a: 1\nb: [1", "line 2: not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML"),
        ("a: 1\nb: *c", "line 2: not valid YAML"),
        ("a: 1\n? [b]\n: 2", "line 2: a key is a list or a group"),
        ("a: 1\nb: {<<: 5}", "line 2: '<<' needs a group of keys"),
        ("a: 1\nb: &b [*b]", "more than 40 groups or lists within each other"),
        ("a: 1\nb: " + "[" * 60 + "]" * 60, "more than 40 groups or lists within each other"),
        ("[" * 100_000 + "\n", "more than 40 groups or lists within each other"),
        (BOMB, "more than 100,000 values, aliases counted"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(tmp_path: Path, text: str, refusal: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UsageError) as refused:
        read_yaml(tmp_path / "f.yaml")
    sentence = str(refused.value)
    assert sentence.startswith(f"config file {tmp_path / 'f.yaml'}")
    assert refusal in sentence
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 300 + len(str(tmp_path))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    for content, refusal in (
        (b"a: 1\nb: \xff\n", "line 2: byte 0xff is not UTF-8: save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"a" * (MAX_BYTES + 1), "is larger than 4 MiB"),
        (b"- 1", "must hold keys and values, such as steps: 100, not a list"),
        (b"", "is empty: write keys and values into it"),
        (b" \n\n", "is empty"),
        (b"5", "must hold keys and values, such as steps: 100, not 5"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=refusal):
            read_yaml(file)
    with pytest.raises(UsageError, match="is a folder: name a file in it"):
        read_yaml(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_yaml(tmp_path / "no.yaml")
    file.write_bytes("a: ü".encode("utf-8-sig"))
    assert read_yaml(file) == {"a": "ü"}
    file.write_bytes(b"# defaults\n")
    assert read_yaml(file) == {}


@pytest.mark.parametrize("value", ["[1", ".inf", "!!int x", '"a\\tb"', "{a: 1, a: 2}", "[" * 50])
def test_values_of_overrides_are_read_with_the_same_care(value: str) -> None:
    with pytest.raises(UsageError, match=r"^override 'a\.b="):
        parse_override(f"a.b={value}")


def test_text_that_looks_like_something_else_survives_a_file() -> None:
    odd = [
        "1e4",
        "010",
        "no",
        "2024-01-01",
        ".inf",
        "1:30",
        "null",
        "",
        "<<",
        "=",
        "0o17",
        "1_0",
        "~",
    ]
    assert from_yaml(as_yaml({"a": odd, **dict.fromkeys(odd, 1)}), "f") == {
        "a": odd,
        **dict.fromkeys(odd, 1),
    }


class Shape(Alternative):
    """A family, in which another one lies."""

    @abstractmethod
    def area(self) -> float: ...


class Box(Shape):
    """Shapes that things can be put into."""


class Square(Box):
    kind: Literal["square"] = "square"
    side: Annotated[float, Field(gt=0)] = 1.0
    """of all four"""

    def area(self) -> float:
        return self.side**2


class Heap(Box):
    kind: Literal["heap"] = "heap"
    boxes: tuple[Box, ...] = ()

    def area(self) -> float:
        return sum(box.area() for box in self.boxes)


class Point(Shape):
    kind: Literal["point"] = "point"

    def area(self) -> float:
        return 0.0


class Drawing(Config):
    shape: Shape = Square()
    """what is drawn"""
    box: float | Box | None = None


def test_a_family_takes_keys_of_its_members_and_their_values() -> None:
    keys = {"shape": {"kind": "heap", "boxes": [{"kind": "square", "side": 2}, {"kind": "heap"}]}}
    typed = Drawing(shape=Heap(boxes=(Square(side=2), Heap())))
    assert Drawing.parse(keys) == typed
    assert Drawing.parse({"shape": Heap(boxes=(Square(side=2), Heap()))}) == typed
    assert Drawing.parse(typed.to_dict()) == typed
    assert typed.to_dict()["shape"]["boxes"][0] == {"kind": "square", "side": 2.0}
    assert Drawing().replace(["shape.side=3"]).shape.area() == 9
    assert Drawing().replace(["box.kind=heap"]).box == Heap()
    assert Drawing().replace(["shape={kind: heap, boxes: [square, heap]}"]).shape == Heap(
        boxes=(Square(), Heap())
    )
    assert Shape.parse({"kind": "square"}) == Square()
    assert list(Shape.kinds()) == ["square", "heap", "point"]
    assert list(Box.kinds()) == ["square", "heap"]
    assert kind_of(Point()) == "point"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"shape": {"kind": "sqare"}}, "shape.kind is 'sqare'; did you mean 'square'? Valid: square, heap"),
        ({"shape": {"kind": ["x"]}}, "shape.kind is \"['x']\"; valid: square, heap, point"),
        ({"shape": {"side": 2}}, "shape needs a 'kind', got {'side': 2}; valid: square, heap, point"),
        ({"shape": 2}, "shape is 2; expected a group of keys with a 'kind'; valid: square, heap, point"),
        ({"shape": Square}, "expected a value, not a class: add parentheses"),
        ({"shape": {"kind": "square", "sid": 2}}, "unknown key 'shape.sid'; did you mean 'side'?"),
        ({"shape": {"kind": "square", "side": 0}}, "shape.side is 0: it should be greater than 0"),
        ({"shape": {"kind": "square", "side": True}}, "shape.side is true: expected a number"),
        ({"shape": {"kind": "heap", "boxes": [{"kind": "point"}]}}, "shape.boxes.0.kind is 'point'; valid: "),
        ({"box": {"kind": "point"}}, "box.kind is 'point'; valid: square, heap"),
        ({"box": {"kind": "square", "side": 0}}, "box.side is 0: it should be greater than 0"),
        ({"shape": {"kind": "heap", "boxes": ["point"]}}, "shape.boxes.0 is 'point'; expected a group"),
        ({"shape": {"kind": "heap", "boxes": "square"}}, "shape.boxes is 'square'; expected a list: [sq"),
        ({"box": "x"}, "box is 'x': it should be a valid number"),
    ],
)  # fmt: skip
def test_what_no_member_of_a_family_takes(values: dict, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        Drawing.parse(values, where="f.yaml")
    assert str(refused.value).startswith("f.yaml: ")
    assert sentence in str(refused.value)
    assert "; f.yaml" not in str(refused.value)


def test_a_family_is_parsed_by_itself() -> None:
    assert Shape.parse_with({"kind": "square"}, ["side=3"]) == Square(side=3)
    for values, sentence in (
        ({"kind": "sqare"}, "f.yaml: kind is 'sqare'; did you mean 'square'?"),
        (
            {"side": 1},
            "f.yaml: the whole needs a 'kind', got {'side': 1}; valid: square, heap, point",
        ),
        ({"kind": "square", "sid": 1}, "f.yaml: unknown key 'sid'; did you mean 'side'?"),
    ):
        with pytest.raises(UsageError) as refused:
            Shape.parse(values, where="f.yaml")
        assert sentence in str(refused.value)


def test_a_kind_belongs_to_one_class() -> None:
    first = type("Blob", (Point,), {"__annotations__": {"kind": Literal["blob"]}, "kind": "blob"})
    again = type("Blob", (Point,), {"__annotations__": {"kind": Literal["blob"]}, "kind": "blob"})
    assert Shape.kinds()["blob"] is again is not first
    with pytest.raises(
        TypeError, match=r"Twin has the kind 'blob' of .*Blob: give it one of its own"
    ):
        type("Twin", (Point,), {"__annotations__": {"kind": Literal["blob"]}, "kind": "blob"})
    with pytest.raises(TypeError, match=r"Smaller has the kind 'square' of .*Square"):
        type("Smaller", (Square,), {})
    with pytest.raises(TypeError, match=r"the kind of .*Vague is not a literal"):
        type("Vague", (Shape,), {"__annotations__": {"kind": str}, "kind": "vague"})
    nameless = type("Nameless", (Box,), {"area": lambda self: 1.0})
    with pytest.raises(TypeError, match="Nameless has no kind"):
        nameless()


def test_the_schema_of_a_family_is_that_of_its_members() -> None:
    schema = json_schema(Drawing)
    shape = schema["properties"]["shape"]
    assert shape["description"] == "what is drawn"
    groups, names, _ = shape["anyOf"]
    assert groups["discriminator"]["mapping"]["heap"] == "#/$defs/Heap"
    assert {"$ref": "#/$defs/Point"} in groups["oneOf"]
    assert "heap" in names["enum"]
    assert schema["$defs"]["Heap"]["properties"]["boxes"]["items"]["anyOf"][0]["oneOf"][:2] == [
        {"$ref": "#/$defs/Square"},
        {"$ref": "#/$defs/Heap"},
    ]
    assert schema["$defs"]["Square"]["properties"]["side"]["description"] == "of all four"


plain_text = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | plain_text
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_plain_values_survive_a_file(value: Any) -> None:
    assert from_yaml(as_yaml(value), "f") == value


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    sentence = ""
    try:
        from_yaml(text, "f")
    except UsageError as error:
        sentence = str(error)
    assert len(sentence.splitlines()) <= 1


def test_values_are_shown_short_and_harmless() -> None:
    assert shown("a" * 500).count("a") < 80
    assert len(shown({"k": ["v" * 50] * 50})) <= 80
    assert shown("a\u202eb\x1b") == "'a\\u202eb\\x1b'"


@pytest.mark.parametrize("kind", [UsageError, DataError, RunError])
def test_a_name_in_a_message_cannot_act_on_a_terminal(kind: type[Exception]) -> None:
    """Whatever refuses a file, and wherever: its name is escaped, and the message keeps its lines."""
    assert str(kind("file \u202ea\x1b[2J is empty;\nsecond line")) == (
        "file \\u202ea\\x1b[2J is empty;\nsecond line"
    )


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\n\u00a0c",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👩\u200d🔬",
        "क्\u200dष",
        "é",
        "語",
    ],
)
def test_what_people_write_is_printed_as_it_is(text: str) -> None:
    assert harmless(text) == text
    assert harmless(f"{text}\x1b[2J\u202e\r\u2028") == f"{text}\\x1b[2J\\u202e\\r\\u2028"
