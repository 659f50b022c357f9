"""The pseudo-log-likelihood of a text, a masked copy at a time: the oracle of the fast version."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from chronomask.evaluate.subject import Subject, find_subject


@lru_cache(maxsize=1)
def _opened(folder: Path) -> tuple[Subject, Any]:
    return find_subject(str(folder)), AutoModelForMaskedLM.from_pretrained(folder).eval()


def by_hand(folder: Path, text: str, score: str, begin: int = 0) -> float:
    """One masked copy at a time, the whole model, log-softmax; of the tokens that end after ``begin``."""
    subject, opened = _opened(folder)
    encoded = subject.tokenizer(text, return_offsets_mapping=True)
    ids, words = encoded["input_ids"], encoded.word_ids()
    total = 0.0
    for k, word in enumerate(words):
        if word is None or encoded["offset_mapping"][k][1] <= begin:
            continue
        masked = list(ids)
        for other in range(k, len(ids)):
            if other == k or (score == "within_word_l2r" and words[other] == word):
                masked[other] = subject.tokenizer.mask_token_id
        with torch.no_grad():
            logits = opened(torch.tensor([masked])).logits[0, k]
        total += torch.log_softmax(logits.double(), -1)[ids[k]].item()
    return total
