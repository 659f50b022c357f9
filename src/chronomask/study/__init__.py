"""Studies: arms that differ in declared fields, run over seeds and compared with intervals."""

from pathlib import Path

STUDY_FILE = "study.yaml"
"""In a study's folder: the study itself, with every default written out."""


def has_lost_its_file(folder: Path) -> bool:
    """Whether a folder holds the runs and logs of a study, and not the file that says what it is."""
    there = (folder / "runs").is_dir() and (folder / "logs").is_dir()
    return there and not (folder / STUDY_FILE).exists()


def lost_file(folder: Path) -> str:
    """The refusal of a folder that :func:`has_lost_its_file`."""
    return (
        f"{folder} holds the runs of a study, whose {STUDY_FILE} is lost: copy the study's YAML file to "
        f"{folder / STUDY_FILE} and repeat the command"
    )
