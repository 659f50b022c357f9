"""Dropout is keyed like everything else that is random, so that there is no state to save."""

from __future__ import annotations

import torch

from chronomask.keyed import Stream, row_keys

__all__ = ["seed_dropout"]


def seed_dropout(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Make the model's dropout a function of where it is drawn: of which 0-based step and part."""
    key = row_keys(seed, Stream.DROPOUT, step, rank * 2**20 + micro_batch)
    torch.manual_seed(int(key) >> 1)
