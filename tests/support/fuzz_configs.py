"""Shipped configs, damaged at random: each becomes a config again, or one refusal.

``python -m tests.support.fuzz_configs --number 3000`` prints how many of each; exit code 1 if one was
neither. Mutation n is a function of n and ``--seed`` alone, and a failure names both.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chronomask.config import Config
from chronomask.config_layers import Layer
from chronomask.errors import ChronomaskError
from chronomask.masking.config import MaskingConfig
from chronomask.prepare.config import PrepareConfig
from chronomask.study.config import load_study
from chronomask.train.config import RunConfig
from tests.support.processes import HANG

Fuzz = Callable[[int, int, Path], tuple[dict[str, Counter[str]], list[str]]]
"""Number of mutations, seed and a folder to counts by kind and reports of failures."""
SHIPPED = Path(__file__).parents[2] / "src" / "chronomask" / "configs"


@dataclass(frozen=True)
class Family:
    """Configs of one kind: files to start from, and how one is read."""

    files: tuple[Path, ...]
    load: Callable[[Path, list[str]], Config]


def _load_study(path: Path, overrides: list[str]) -> Config:
    return load_study(path, [Layer.of_override(text) for text in overrides])


def _with_masking(files: Iterable[Path]) -> list[Path]:
    """Those that change masking: an arm may change something else alone."""
    return sorted(file for file in files if "masking" in yaml.safe_load(file.read_text("utf-8")))


FAMILIES = {
    "run": Family(tuple(sorted(SHIPPED.glob("*.yaml"))), RunConfig.load),
    "masking": Family(tuple(_with_masking(SHIPPED.glob("arms/*.yaml"))), MaskingConfig.load),
    "prepare": Family(tuple(sorted(SHIPPED.glob("prepare/*.yaml"))), PrepareConfig.load),
    "study": Family(tuple(sorted(SHIPPED.glob("study/*.yaml"))), _load_study),
}  # fmt: skip

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, -(2**63), 10**400, 0.0, -0.5, 1.5, 1e-300, 1e308, 1e999, -1e999,
    math.nan, "", " ", "nan", "inf", "-.inf", "1e5", "0x10", "no", "null", "a\0b", "a\nb", "‮", "é" * 300,
    "../../etc", "kind", "constant", "linear", [], [[]], [None], ["a", "a"], [0] * 50, {}, {"": 0},
    {"kind": "constant"}, {"kind": None}, {"kind": ["x"]}, {"kind": "linear", "start": 0.3, "end": math.nan},
    {"kind": "phases", "phases": []}, {"kind": "phases", "phases": [{"until": 1, "ratio": math.inf}]},
    {"kind": "sequence", "parts": [{"until": 1.0, "schedule": {"kind": "constant"}}]},
    {"a": {"b": {"c": {"d": {"e": 1}}}}}, {1: 2}, {None: None}, {True: 1},
)  # fmt: skip
"""Values that no field may take on trust."""


INSIDE = re.compile(
    r"Traceback|pydantic|[Ii]nput should|ValidationError|<class|object at 0x|\b(tuple|dictionary|extract)\b"
)
"""What a message to people does not say."""


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value below ``node``."""
    if isinstance(node, dict | list):
        for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield (*at, key)
            yield from places(child, (*at, key))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def mutate(values: dict[str, Any], rng: random.Random) -> None:
    """Change one thing in place."""
    path = rng.choice([*places(values), ("new",)])
    parent, key = at(values, path[:-1]), path[-1]
    match rng.randrange(7):
        case 0 | 1 | 2:
            parent[key] = copy.deepcopy(rng.choice(NASTY))
        case 3 if isinstance(parent, dict):
            parent.pop(key, None)
        case 4 if isinstance(parent, dict) and key in parent:  # a slip of the pen
            name = str(key)
            where = rng.randrange(len(name) + 1)
            parent[name[:where] + rng.choice("aeis_.-") + name[where + 1 :]] = parent.pop(key)
        case 5:
            parent[key] = copy.deepcopy(at(values, rng.choice([*places(values), ()])))
        case _:
            value = parent.get(key) if isinstance(parent, dict) else parent[key]
            if isinstance(value, int | float) and not isinstance(value, bool):
                parent[key] = min(value, 10**300) * rng.choice([-1, 0, 0.5, 1e3, 1e30, math.inf])
            else:
                parent[key] = rng.choice([[value], {"kind": value}, str(value)])


def damage(text: str, rng: random.Random) -> bytes:
    """The bytes of a file with a few changed, doubled or lost."""
    content = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(content))
        match rng.randrange(4):
            case 0:
                content[where] = rng.randrange(256)
            case 1:
                del content[where : where + rng.randint(1, 30)]
            case 2:
                content[where:where] = content[where : where + rng.randint(1, 60)]
            case _:
                content[where:where] = rng.choice(
                    [b"\t", b"&a ", b"*a", b"!!python/name:os.system ", b"\xff"]
                )
    return bytes(content or b"#")


@contextmanager
def no_hang() -> Iterator[None]:
    """An error after an hour, where a thread can have one."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def overrides_of(values: dict[str, Any], rng: random.Random) -> list[str]:
    """Some ``--set`` of keys that may exist."""
    found = [".".join(map(str, path)) for path in places(values)] or ["steps"]
    return [
        f"{rng.choice(found)}{rng.choice(['=', '=', '=', '', '.x='])}{rng.choice(NASTY)}"
        for _ in range(rng.choice([0, 0, 1, 2]))
    ]


def numbers(node: Any) -> Iterator[float]:
    """Every number in plain values."""
    if isinstance(node, dict | list | tuple):
        for child in node.values() if isinstance(node, dict) else node:
            yield from numbers(child)
    elif isinstance(node, int | float):
        yield node


def check_config(config: Config) -> None:
    """What must hold for a config that was accepted."""
    values = config.to_dict()
    assert all(map(math.isfinite, numbers(values))), "it holds a number that is not finite"
    json.dumps(values, allow_nan=False)
    again = type(config).parse(values)
    assert again == config, "its plain values mean another config"
    masking = config if isinstance(config, MaskingConfig) else getattr(config, "masking", None)
    if isinstance(masking, MaskingConfig):
        for progress in (0.0, 0.3, 0.5, 1.0):
            assert 0 <= masking.ratio.at(progress) <= 1, "a ratio outside [0, 1]"
            assert 0 <= sum(masking.replace_probs(progress)) <= 1 + 1e-9
    if isinstance(config, RunConfig):
        for step in (0, config.steps // 2, config.steps - 1):
            assert 0 <= config.learning_rate.at(step, config.steps) < math.inf
            assert config.sizes.rows_at(step) >= 1


def check_refusal(error: ChronomaskError) -> None:
    """One line for people, with no trace of what is inside."""
    text = str(error)
    assert text == text.strip(), "spaces around it"
    assert text, "no message"
    assert text.isprintable(), "control characters in a message"
    assert INSIDE.search(text) is None, "it speaks of what is inside"


def one(name: str, number: int, seed: int, folder: Path) -> str:
    """Mutation ``number`` of a family; what became of it."""
    family = FAMILIES[name]
    rng = random.Random(f"{seed}-{name}-{number}")
    file = rng.choice(family.files)
    text = file.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    if name == "masking":
        values = values["masking"]
        text = yaml.safe_dump(values)
    for key in ("base",) if name == "study" and rng.random() < 0.5 else ():
        values[key] = str(SHIPPED / "bert-tiny.yaml")
    overrides = overrides_of(values, rng) if rng.random() < 0.3 else []
    if rng.random() < 0.25:
        content = damage(text, rng)
    else:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            mutate(values, rng)
        content = yaml.safe_dump(values, allow_unicode=rng.random() < 0.5).encode()
    path = folder / f"{name}.yaml"
    path.write_bytes(content)
    try:
        config = family.load(path, overrides)
    except ChronomaskError as error:
        check_refusal(error)
        return "refused"
    check_config(config)
    return "accepted"


def fuzz(number: int, seed: int, folder: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """``number`` mutations over all families: counts by family, and a report of each failure."""
    counts = {name: Counter[str]() for name in FAMILIES}
    failures = []
    with no_hang():
        for n in range(number):
            name = list(FAMILIES)[n % len(FAMILIES)]
            try:
                became = one(name, n, seed, folder)
            except Exception:
                became = "failed"
                content = (folder / f"{name}.yaml").read_bytes()
                failures.append(f"{name} {n}, seed {seed}:\n{content!r}\n{traceback.format_exc()}")
            counts[name][became] += 1
    return counts, failures


def command(fuzz: Fuzz, number: int) -> int:
    """Run so many mutations, or as many as the command line asks for; prints counts and failures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = fuzz(arguments.number, arguments.seed, Path(folder))
    print(*failures, sep="\n\n", file=sys.stderr)
    print(json.dumps({name: dict(sorted(found.items())) for name, found in counts.items()}))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(command(fuzz, 3000))
