"""The pseudo-log-likelihood of a text, a masked copy at a time: the oracle of the fast version."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from chronomask.evaluate.subject import find_subject


def by_hand(folder: Path, text: str, score: str) -> float:
    """One masked copy at a time, the whole model, log-softmax."""
    subject = find_subject(str(folder))
    opened = AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoded = subject.tokenizer(text)
    ids, words = encoded["input_ids"], encoded.word_ids()
    total = 0.0
    for k, word in enumerate(words):
        if word is None:
            continue
        masked = list(ids)
        for other in range(k, len(ids)):
            if other == k or (score == "within_word_l2r" and words[other] == word):
                masked[other] = subject.tokenizer.mask_token_id
        with torch.no_grad():
            logits = opened(torch.tensor([masked])).logits[0, k]
        total += torch.log_softmax(logits.double(), -1)[ids[k]].item()
    return total
