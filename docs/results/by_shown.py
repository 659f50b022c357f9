"""Losses of whole words, by what is shown in place of a predicted token.

    python docs/results/by_shown.py STUDY FILE.csv

Means over the seeds of each arm of a study, in nats per predicted token, on its first 1,024 held-out rows.
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

KINDS = ("mask", "itself", "random")


def main(study: Path, out: Path) -> None:
    """Measure every model of the study and write the means of its arms."""
    data = PreparedData.open(study / "data")
    vocabulary = Vocabulary.from_tokenizer(open_tokenizer(data.tokenizer_path))
    rows = data.split("held_out").read(np.arange(1024), 0)
    lines = []
    for yardstick in (each for each in YARDSTICKS if each.ratio is not None):
        batch = masker_of(yardstick, vocabulary)(rows)
        shown = batch.input_ids.ravel()[batch.positions]
        is_mask, is_kept = shown == vocabulary.mask_token_id, shown == batch.targets
        where = (is_mask, is_kept, ~(is_mask | is_kept))
        lines.append([yardstick.name, "predictions", *(int(each.sum()) for each in where)])
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
            lines.append([yardstick.name, arm.name, *(f"{mean[own].mean():.4f}" for own in where)])
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["yardstick", "arm", *KINDS], *lines])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
