"""An environment of its own in which only the core's dependencies can be imported.

It holds the wheel, installed, and a link to every file at the top of each distribution that the core
requires, directly or not. Nothing is downloaded.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built by the hatchling that is installed."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("chronomask-*.whl")
    return wheel


def build_sdist(folder: Path) -> Path:
    """The archive of this tree's sources, built by the hatchling that is installed."""
    hatch = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "sdist",
        "--directory",
        str(folder),
    ]
    subprocess.run(hatch, cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("chronomask-*.tar.gz")
    return archive


def core_only_environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel and the core's dependencies; its ``bin`` folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--quiet",
    ]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (installed,) = packages.glob("chronomask-*.dist-info")
    for found in _closure(Distribution.at(installed)):
        for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
            link = packages / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder / "bin"


def _closure(core: Distribution) -> list[Distribution]:
    """The installed distributions that one requires without its extras, directly or not."""
    found: dict[str, Distribution] = {}
    waiting = [(core, "")]
    while waiting:
        current, extras = waiting.pop()
        for line in current.requires or ():
            requirement = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *extras.split(","))]
            if requirement.marker and not any(map(requirement.marker.evaluate, wanted)):
                continue
            key = f"{requirement.name.lower()}[{','.join(sorted(requirement.extras))}]"
            if key in found:
                continue
            try:
                found[key] = distribution(requirement.name)
            except PackageNotFoundError:  # a dependency of another system or build
                continue
            waiting.append((found[key], ",".join(requirement.extras)))
    return list(found.values())
