"""Time-variant masking in training loops that people already have.

One file per framework; what they share is in ``rows`` (features → rows) and ``step`` (one run's
masking). May import masking, data, model and what is below.
"""
