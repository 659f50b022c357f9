"""Whether the data of a study have what the masking of its arms needs: looked at before anything is trained.

What is added to prepared data gives them another fingerprint, and runs on data of two fingerprints are not
compared. So it has to be there before the first run begins.
"""

from __future__ import annotations

from chronomask.config import kind_of
from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.folders import is_prepared_data
from chronomask.runs.rules import check_masking
from chronomask.study.arms import Arm
from chronomask.study.settings import naming_settings
from chronomask.study.units import Study

__all__ = ["check_masking_of_arms"]


def check_masking_of_arms(study: Study) -> None:
    """Raise UsageError where an arm that is still to be trained has masking that the data cannot give it.

    Of text that the study has yet to prepare, only what its section ``prepare`` decides is known.
    """
    waiting = {
        unit.arm for unit in study.units if unit.kind == "pretrain" and not study.is_complete(unit)
    }
    arms = [arm for name, arm in study.arms.items() if name in waiting]
    prepared = is_prepared_data(study.data)
    problems = _problems_of_data(study, arms) if prepared else _problems_of_text(study, arms)
    if not problems:
        return
    listing = "; ".join(
        f"{'arm' if len(names) == 1 else 'arms'} {', '.join(map(repr, names))}: {text}"
        for text, names in problems.items()
    )
    begun = sorted(study.run(u).path for u in study.units if study.run(u).environment.is_file())
    if prepared and begun:
        listing += (
            f"  (other runs have begun on these data as they are, such as {begun[0]}, and could not be "
            f"compared with runs on data that have more: remove {study.folder / 'runs'} then to train them "
            "again, or leave the data and take the arm out of the study)"
        )
    raise UsageError(listing)


def _problems_of_data(study: Study, arms: list[Arm]) -> dict[str, list[str]]:
    """What prepared data lack → the arms that it is wrong with."""
    found: dict[str, list[str]] = {}
    if not arms:
        return found
    data = PreparedData.open(study.data)
    for arm in arms:
        try:
            with naming_settings(arm.name, arm.own_fields):
                check_masking(arm.config, data)
        except UsageError as error:
            found.setdefault(str(error), []).append(arm.name)
    return found


def _problems_of_text(study: Study, arms: list[Arm]) -> dict[str, list[str]]:
    """What text lacks as the study would prepare it → the arms that it is wrong with."""
    prepare, found = study.config.prepare, {}
    for arm in arms:
        content = arm.config.masking.content
        if prepare is not None and content.needs_scores and kind_of(prepare.scores) == "none":
            text = (
                f"masking.content '{kind_of(content)}' weighs positions by the scores of the data, and the "
                "study would prepare its text without any: set prepare.scores=informativeness"
            )
            found.setdefault(text, []).append(arm.name)
    return found
