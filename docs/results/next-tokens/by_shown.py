"""Losses of whole words at 5 %, by what is shown in place of a predicted token.

    python docs/results/next-tokens/by_shown.py runs/next-tokens

Means over the seeds of each arm, in nats per predicted token, on the first 1,024 held-out rows of the
study. Writes ``by_shown.csv`` beside this file.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch

from chronomask.data.folder import PreparedData
from chronomask.masking.masker import Vocabulary
from chronomask.masking.yardsticks import masker_of
from chronomask.model.open import open_model, open_tokenizer
from chronomask.train.forward import Forward
from chronomask.yardsticks import YARDSTICKS


def main(study: Path) -> None:
    data = PreparedData.open(study / "data")
    vocabulary = Vocabulary.from_tokenizer(open_tokenizer(data.tokenizer_path))
    (yardstick,) = (each for each in YARDSTICKS if each.name == "words-5")
    rows = data.split("held_out").read(np.arange(1024), 0)
    batch = masker_of(yardstick, vocabulary)(rows)
    shown = batch.input_ids.ravel()[batch.positions]
    is_mask, is_kept = shown == vocabulary.mask_token_id, shown == batch.targets
    kinds = {"mask": is_mask, "itself": is_kept, "random": ~(is_mask | is_kept)}
    found = []
    for arm in sorted((study / "runs").iterdir()):
        losses = []
        for model in sorted(arm.glob("seed-*/checkpoints/*/transformers")):
            forward = Forward(
                open_model(model).eval(),
                torch.device("cpu"),
                "fp32",
                "documents",
                data.manifest.pad_token_id,
            )
            with torch.no_grad():
                losses.append(forward.losses(forward.place(rows, batch))[0].numpy())
        mean = np.mean(losses, axis=0)
        found.append([arm.name, *(f"{mean[where].mean():.4f}" for where in kinds.values())])
    with (Path(__file__).parent / "by_shown.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows([["arm", *kinds], *found])
    print(*({kind: int(where.sum()) for kind, where in kinds.items()}.items()), *found, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
