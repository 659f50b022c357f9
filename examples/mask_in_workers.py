"""Masking in loader workers, with the step carried in the batch: lines marked (+) are new.

python examples/mask_in_workers.py
"""

import torch
from scraps import paragraphs, tiny_bert, tokenised, train_tokenizer

import chronomask as cm  # (+)

NUM_STEPS, BATCH_SIZE = 60, 16


def main() -> None:
    """Train on batches that arrive masked."""
    torch.manual_seed(0)
    texts = paragraphs()
    tokenizer = train_tokenizer(texts)
    rows = tokenised(tokenizer, texts)
    model = tiny_bert(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)

    ratio = cm.ratio.Linear(start=0.30, end=0.15)  # (+)
    masker = cm.Masker.for_tokenizer(tokenizer, ratio=ratio)  # (+)
    loader = cm.MaskedLoader(  # (+) instead of DataLoader
        rows,
        masker,
        batch_size=BATCH_SIZE,
        num_steps=NUM_STEPS,
        collate_fn=cm.RowCollator(tokenizer),
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
