"""Time-variant masking in training loops that people already have.

One file per framework, and ``order`` for which rows come when; ``step`` is what the frameworks share: one
run's masking, its ratios for the logs, its state in a checkpoint.
"""
