"""chronomask: pre-train masked language models with masking that changes over training."""

__version__ = "0.1.0"
