"""Figures and one HTML page from results files only; what enters is a run folder's path.

``read`` makes arrays of a run folder; ``figures`` and ``class_figures`` draw them with ``drawing``;
``tables`` and ``summary`` put them in numbers and sentences; ``page`` binds all into one file with
``render`` and the templates. Nothing here imports torch, transformers or a tagger.
"""

from chronomask.report.page import write_report
from chronomask.report.tables import arms_table

__all__ = ["arms_table", "write_report"]
