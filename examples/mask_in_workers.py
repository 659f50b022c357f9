"""Masking in loader workers, with the step carried in the batch: lines marked (+) are new.

python examples/mask_in_workers.py
"""

import torch
from scraps import paragraphs, tiny_bert, tokenised, train_tokenizer
from torch.utils.data import DataLoader

from chronomask.integrations.rows import RowCollator  # (+)
from chronomask.integrations.workers import StepBatches, SteppedRows, WorkerMasking  # (+)
from chronomask.masking.masker import Masker  # (+)

NUM_STEPS, BATCH_SIZE = 60, 16


def main() -> None:
    """Train on batches that arrive masked."""
    torch.manual_seed(0)
    texts = paragraphs()
    tokenizer = train_tokenizer(texts)
    rows = tokenised(tokenizer, texts)
    model = tiny_bert(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)

    masker = Masker.for_tokenizer(
        tokenizer, ratio={"kind": "linear", "start": 0.30, "end": 0.15}
    )  # (+)
    loader = DataLoader(
        SteppedRows(rows),  # (+)
        batch_sampler=StepBatches(len(rows), batch_size=BATCH_SIZE, num_steps=NUM_STEPS),  # (+)
        collate_fn=WorkerMasking(RowCollator(tokenizer), masker, NUM_STEPS),  # (+)
        num_workers=2,
    )
    for step, batch in enumerate(loader):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % 10 == 0:
            share = (batch["labels"] != -100).sum() / batch["attention_mask"].sum()
            print(f"step {step + 1}: {share:.3f} of all tokens predicted, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
