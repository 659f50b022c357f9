"""Pre-training: one loop, its configuration, and everything a run keeps on disk.

``config`` is the tree of all parts' configs; ``loop`` is read top to bottom; ``run`` holds a run's parts and
state; ``optimiser``, ``learning_rate``, ``outliers`` and ``loggers`` are families of configs that do what
their name says; ``saving`` writes checkpoints and ``checkpoint`` reads them. No tagger, no source of text
and no report enters here.
"""
