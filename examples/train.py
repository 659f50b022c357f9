"""A whole pre-training in one file: prepare text, mask rows, train, save, go on where it stopped.

python examples/train.py [output folder] [step to stop at]
"""

import sys
from pathlib import Path

import torch
from scraps import paragraphs, tiny_bert
from transformers import AutoTokenizer

import chronomask as cm

NUM_STEPS, ROWS_PER_STEP, SAVE_EVERY = 60, 16, 20


def main(output: str = "train_output", stop: str = str(NUM_STEPS)) -> None:
    """Train up to step ``stop``, from the last state saved in the output folder."""
    out = Path(output)
    out.mkdir(parents=True, exist_ok=True)
    text, state = out / "text.txt", out / "state.pt"
    if not text.exists():
        text.write_text("\n\n".join(paragraphs()), encoding="utf-8")

    # Text becomes rows of tokens that know their words and parts of speech; done once, then reused.
    wordpiece = {"kind": "wordpiece", "vocab_size": 2000}
    data = cm.prepare(text, out / "data", tokenizer=wordpiece, row_length=64, held_out=0.1)
    loader = cm.RowLoader(data.split("train"), seed=0, rows_per_step=ROWS_PER_STEP)

    # The ratio falls while training goes on; kinds of words that are still hard are masked more often.
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_path)
    schedules = {"ratio": cm.ratio.Linear(start=0.30, end=0.15), "content": cm.content.Ptw()}
    masker = cm.Masker.for_tokenizer(tokenizer, schedules, class_names=data.class_names, seed=0)
    judge = cm.Masker.for_tokenizer(tokenizer, ratio=cm.ratio.Constant(base=0.15))

    torch.manual_seed(0)
    model = tiny_bert(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    parts, first = {"model": model, "optimiser": optimiser, "masker": masker}, 0
    if state.exists():
        saved = torch.load(state, weights_only=True)  # tensors and numbers only: it runs no code
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for step in range(first, int(stop)):
        torch.manual_seed(step)  # keys dropout, so that going on equals never having stopped
        batch = masker(loader.rows_at(step), progress=step / NUM_STEPS)
        losses, correct = cm.score(model(**batch.inputs()).logits, batch)
        losses.mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        masker.observe(batch, losses, correct)
        masker.end_step()  # what was learnt is in force from the next step on
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: ratio {batch.masking_ratio:.3f}, loss {losses.mean():.3f}")
        if (step + 1) % SAVE_EVERY == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save(states | {"step": step + 1}, state)

    model.eval()
    held_out = cm.RowLoader(data.split("held_out"), seed=0, rows_per_step=64)
    batch = judge(held_out.rows_at(0), progress=1.0)  # the same rows and masks at every call
    with torch.no_grad():
        loss = cm.score(model(**batch.inputs()).logits, batch)[0].mean()
    print(f"held-out loss at 15 %: {loss:.3f}")
    model.save_pretrained(out / "model")


if __name__ == "__main__":
    main(*sys.argv[1:])
