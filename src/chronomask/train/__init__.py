"""Pre-training: one loop, its configuration, and everything a run keeps on disk.

``config`` is the tree of all parts' configs; ``loop`` is read top to bottom; ``checkpoint``, ``log``,
``validation``, ``optimiser``, ``learning_rate``, ``distributed`` and ``signals`` each do what their
name says. No tagger, no source of text and no report enters here.
"""
