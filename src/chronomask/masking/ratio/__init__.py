"""How much is masked: ratio schedules over training progress in [0, 1].

Every schedule is one class: ``courses`` follow progress, ``laws`` give every row a ratio of its own,
``responsive`` answers the loss. A new one is one more class, here or anywhere (see
:class:`~chronomask.config.Alternative`); ``base`` says what it must define.
"""

from chronomask.masking.ratio.base import (
    AsCourse,
    Course,
    NumberOrCourse,
    PureSchedule,
    Ratio,
    RatioState,
    Schedule,
    Share,
    Watched,
    course_group,
    refuse_laws,
    value_at,
)
from chronomask.masking.ratio.courses import (
    Ascending,
    ConcaveDecay,
    Constant,
    ConvexDecay,
    CosineDecay,
    CosineThenQuadratic,
    DownThenUp,
    Linear,
    LinearDecay,
    Phase,
    Phases,
    Sequence,
    Stretch,
    UpThenDown,
    WarmupDecay,
)
from chronomask.masking.ratio.laws import BetaRows, CosineRows, MixtureRows, NormalRows, UniformRows
from chronomask.masking.ratio.responsive import Responsive

__all__ = [
    "AsCourse",
    "Ascending",
    "BetaRows",
    "ConcaveDecay",
    "Constant",
    "ConvexDecay",
    "CosineDecay",
    "CosineRows",
    "CosineThenQuadratic",
    "Course",
    "DownThenUp",
    "Linear",
    "LinearDecay",
    "MixtureRows",
    "NormalRows",
    "NumberOrCourse",
    "Phase",
    "Phases",
    "PureSchedule",
    "Ratio",
    "RatioState",
    "Responsive",
    "Schedule",
    "Sequence",
    "Share",
    "Stretch",
    "UniformRows",
    "UpThenDown",
    "WarmupDecay",
    "Watched",
    "course_group",
    "refuse_laws",
    "value_at",
]
