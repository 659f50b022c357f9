"""Time-variant masking in a plain PyTorch loop: lines marked (+) are new.

python examples/plain_loop.py
"""

import torch
from scraps import paragraphs, tiny_bert, tokenised, train_tokenizer

import chronomask as cm  # (+)

NUM_EPOCHS = 1


def main() -> None:
    """Train, and show how the ratio fell."""
    torch.manual_seed(0)
    texts = paragraphs()
    tokenizer = train_tokenizer(texts)
    rows = tokenised(tokenizer, texts)
    model = tiny_bert(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    collate = cm.RowCollator(tokenizer)  # (+) instead of DataCollatorForLanguageModeling
    loader = cm.KeyedLoader(rows, batch_size=16, collate_fn=collate, drop_last=True)  # (+)
    num_steps = NUM_EPOCHS * len(loader)

    masker = cm.Masker.for_tokenizer(  # (+)
        tokenizer,
        ratio=cm.ratio.Linear(start=0.30, end=0.15),
        content=cm.content.TokenAccuracy(),
    )

    step = 0
    for epoch in range(NUM_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            masked = masker(batch, progress=step / num_steps)  # (+)
            logits = model(**masked.inputs()).logits
            losses, correct = cm.score(logits, masked)  # (+)
            loss = losses.mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            masker.observe(masked, losses, correct)  # (+)
            masker.end_step()  # (+) masker.state_dict() belongs in your checkpoint
            step += 1
            if step % 10 == 0:
                print(f"step {step}: ratio {masked.masking_ratio:.3f}, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
