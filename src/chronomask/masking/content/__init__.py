"""Which classes of tokens are preferred: content schedules, each with what training teaches it.

Every schedule is one class, with the state it begins: ``given`` holds weights that no loss changes, ``ptw``
those by the level of a class's loss, ``learning`` those by its fall and by what can still be learnt of
it, ``tokens`` those by token id. ``base`` says what a schedule of one's own must define, here or anywhere
(see :class:`~chronomask.config.Alternative`); ``maps`` turn losses into weights.
"""

from chronomask.masking.content.base import ContentSchedule, ContentState, LookAhead, quantise
from chronomask.masking.content.given import Fixed, ModelScores, NoContent, Scores
from chronomask.masking.content.learning import LearningProgress, ReducibleLoss
from chronomask.masking.content.maps import Clipped, Nats, Sigmoid, Softmax, WeightMap
from chronomask.masking.content.ptw import Ptw, PtwFaithful
from chronomask.masking.content.tokens import TokenAccuracy, TokenProbability

__all__ = [
    "Clipped",
    "ContentSchedule",
    "ContentState",
    "Fixed",
    "LearningProgress",
    "LookAhead",
    "ModelScores",
    "Nats",
    "NoContent",
    "Ptw",
    "PtwFaithful",
    "ReducibleLoss",
    "Scores",
    "Sigmoid",
    "Softmax",
    "TokenAccuracy",
    "TokenProbability",
    "WeightMap",
    "quantise",
]
