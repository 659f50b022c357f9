"""The published PTW procedure as plain Python: the oracle of the fast version.

Yang, Zhang and Zhao (ACL 2023, arXiv 2208.10806), read with their public code: words are shuffled,
walked once, accepted with their class's weight, skipped when their pieces overshoot the budget.
"""

import math
import random

NUM_TAGS = 17


class PublishedAverages:
    """Running loss per tag and the weights made of it; plain floats, one value per tag."""

    def __init__(self, ema_decay: float = 0.999) -> None:
        self.ema_decay = ema_decay
        self.loss = [0.0] * NUM_TAGS

    def update(self, losses: list[float], tags: list[int]) -> None:
        """``losses`` and ``tags`` (0 … 16) of one step's masked tokens."""
        for tag in set(tags):
            own = [loss for loss, other in zip(losses, tags, strict=True) if other == tag]
            mean = math.fsum(own) / len(own)
            self.loss[tag] = self.ema_decay * self.loss[tag] + (1 - self.ema_decay) * mean

    def weights(self) -> list[float]:
        mean = math.fsum(self.loss) / NUM_TAGS
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in self.loss) / (NUM_TAGS - 1))
        if std == 0:
            return [0.5] * NUM_TAGS
        return [1 / (1 + math.exp(-2 * (x - mean) / std)) for x in self.loss]


def mask_row(
    input_ids: list[int],
    word_id: list[int],
    tags: list[int],
    weights: list[float],
    ratio: float,
    mask_id: int,
    vocabulary: list[int],
    rng: random.Random,
) -> tuple[list[int], list[int]]:
    """New ids and labels of one row; ``tags`` index ``weights`` per token, word_id −1 = special."""
    words: list[list[int]] = []
    for position, word in enumerate(word_id):
        if word < 0:
            continue
        if word == len(words):
            words.append([])
        words[word].append(position)
    budget = max(1, round(ratio * len(input_ids)))
    rng.shuffle(words)
    covered: list[int] = []
    for word in words:
        if len(covered) >= budget:
            break
        if len(covered) + len(word) > budget:
            continue
        if rng.random() < weights[tags[word[0]]]:
            covered.extend(word)
    ids, labels = list(input_ids), [-100] * len(input_ids)
    for position in covered:
        labels[position] = input_ids[position]
        draw = rng.random()
        if draw < 0.8:
            ids[position] = mask_id
        elif draw < 0.9:
            ids[position] = rng.choice(vocabulary)
    return ids, labels
