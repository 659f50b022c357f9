"""The names of :mod:`chronomask` for type checkers; ``_HOMES`` in ``__init__.py`` says the same to Python."""

from chronomask.adapt import adapt as adapt
from chronomask.data.loader import RowLoader as RowLoader
from chronomask.data.mixture import open_data as open_data
from chronomask.errors import ChronomaskError as ChronomaskError
from chronomask.errors import DataError as DataError
from chronomask.errors import RunError as RunError
from chronomask.errors import UsageError as UsageError
from chronomask.evaluate.evaluate import evaluate as evaluate
from chronomask.integrations.lightning import TimeVariantMasking as TimeVariantMasking
from chronomask.integrations.order import KeyedLoader as KeyedLoader
from chronomask.integrations.order import with_row_ids as with_row_ids
from chronomask.integrations.step import StepMasking as StepMasking
from chronomask.integrations.transformers import TimeVariantTrainer as TimeVariantTrainer
from chronomask.integrations.workers import MaskedLoader as MaskedLoader
from chronomask.masking import content as content
from chronomask.masking import ratio as ratio
from chronomask.masking import strategy as strategy
from chronomask.masking.config import MaskingConfig as MaskingConfig
from chronomask.masking.masker import Masker as Masker
from chronomask.masking.rows import RowCollator as RowCollator
from chronomask.masking.tally import score as score
from chronomask.masking.tally import weighted_sum as weighted_sum
from chronomask.prepare.classes import add_classes as add_classes
from chronomask.prepare.config import PrepareConfig as PrepareConfig
from chronomask.prepare.pipeline import prepare as prepare
from chronomask.runs.read import read_run as read_run
from chronomask.runs.read import read_runs as read_runs
from chronomask.runs.result import TaskResult as TaskResult
from chronomask.show.show import inspect_text as inspect_text
from chronomask.study.command import report as report
from chronomask.study.command import study as study
from chronomask.study.config import StudyConfig as StudyConfig
from chronomask.train.config import RunConfig as RunConfig
from chronomask.train.loop import pretrain as pretrain
from chronomask.types import UPOS_CLASSES as UPOS_CLASSES
from chronomask.types import MaskedBatch as MaskedBatch
from chronomask.types import Rows as Rows

__version__: str
__all__: list[str]
