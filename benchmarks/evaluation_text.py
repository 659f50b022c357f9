"""Made-up tasks in the official formats, with lengths like those of SST-2 and of SQuAD."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

__all__ = ["question_files", "sentence_files"]

_GOOD, _BAD = [f"good{k}" for k in range(40)], [f"bad{k}" for k in range(40)]


def _words(rng: np.random.Generator, number: int) -> list[str]:
    share = 1 / np.arange(1, 5001)
    return [f"w{k}" for k in rng.choice(5000, number, p=share / share.sum())]


def sentence_files(folder: Path, num_train: int, num_dev: int) -> None:
    """``SST-2/train.tsv`` and ``dev.tsv``: two words in a sentence tell the class.

    Train parts are phrases of 9 words on average, at most 52, dev sentences of 19, as those of SST-2.
    """
    rng = np.random.default_rng(0)
    (folder / "SST-2").mkdir(parents=True)
    for split, size, average in (("train", num_train, 9.4), ("dev", num_dev, 19.3)):
        lines = ["sentence\tlabel"]
        for _ in range(size):
            label = int(rng.integers(2))
            length = int(np.clip(rng.gamma(1.4, average / 1.4), 2, 52))
            words = _words(rng, length) + list(rng.choice(_GOOD if label else _BAD, 2))
            lines.append(f"{' '.join(rng.permutation(words))}\t{label}")
        (folder / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def question_files(folder: Path, num_train: int, num_dev: int) -> None:
    """``squad/train-v1.1.json`` and ``dev-v1.1.json``: the answer stands after the word asked for.

    Contexts have 117 words on average, log-normal, at most 600, as those of SQuAD.
    """
    rng = np.random.default_rng(1)
    (folder / "squad").mkdir(parents=True)
    for split, size in (("train", num_train), ("dev", num_dev)):
        articles = []
        for number in range(-(-size // 5)):
            words = _words(rng, int(np.clip(rng.lognormal(np.log(107), 0.42), 20, 600)))
            keys = rng.choice(len(words) // 3, min(5, len(words) // 3), replace=False) * 3
            asked = []
            for k, at in enumerate(keys):
                words[at], words[at + 1] = f"key{k}", f"answer{rng.integers(200)}"
            starts = np.concatenate(([0], np.cumsum([len(word) + 1 for word in words])))
            for k, at in enumerate(keys):
                question = " ".join(["what", "comes", "after", f"key{k}", *_words(rng, 6)])
                answer = {"text": words[at + 1], "answer_start": int(starts[at + 1])}
                asked.append(
                    {"id": f"{split}-{number}-{k}", "question": question, "answers": [answer]}
                )
            paragraph = {"context": " ".join(words), "qas": asked}
            articles.append({"title": f"{split} {number}", "paragraphs": [paragraph]})
        content = {"version": "1.1", "data": articles}
        (folder / "squad" / f"{split}-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
