"""Made-up text for tests: the same on every call and in every process."""

from __future__ import annotations

import random

SYLLABLES = (
    "ba", "co", "di", "fu", "ga", "he", "li", "mo", "na", "pe", "ri", "so", "ta", "ve", "wu", "xa", "zo",
    "ple", "stra", "ing", "er", "ed", "tion",
)  # fmt: skip


def made_up_text(num_documents: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 12 sentences of made-up words, with capitals and punctuation."""
    choose = random.Random(seed)
    words = ["".join(choose.choices(SYLLABLES, k=choose.randint(1, 4))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(len(words))]

    def sentence() -> str:
        first, *rest = choose.choices(words, weights, k=choose.randint(4, 14))
        return f"{first.capitalize()} {' '.join(rest[:2])}, {' '.join(rest[2:])}."

    return [
        " ".join(sentence() for _ in range(choose.randint(1, 12))) for _ in range(num_documents)
    ]
