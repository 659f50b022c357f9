"""Time-variant masking in a script that uses Lightning: lines marked (+) are new.

python examples/lightning_module.py [output folder]
"""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from scraps import paragraphs, tiny_bert, tokenised, train_tokenizer
from torch.utils.data import DataLoader

import chronomask as cm  # (+)


class Bert(pl.LightningModule):
    """A model, its loss and its optimiser."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Batches arrive masked."""
        out = self.model(**batch)
        self.log("loss", out.loss)
        return {"loss": out.loss, "logits": out.logits}  # (+) logits, for content that learns

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """15 % of the tokens, the same ones each time."""
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(output: str = "lightning_output") -> None:
    """Train and validate."""
    pl.seed_everything(0)
    texts = paragraphs()
    tokenizer = train_tokenizer(texts)
    rows = tokenised(tokenizer, texts)
    collate = cm.RowCollator(tokenizer)  # (+) instead of DataCollatorForLanguageModeling
    masking = cm.MaskingConfig(  # (+)
        ratio=cm.ratio.Linear(start=0.30, end=0.15), content=cm.content.TokenAccuracy(every=20)
    )
    trainer = pl.Trainer(
        default_root_dir=output,
        max_steps=60,
        logger=False,
        enable_progress_bar=False,
        callbacks=[cm.TimeVariantMasking(masking, tokenizer)],  # (+)
    )
    train = cm.KeyedLoader(rows[:-64], batch_size=16, collate_fn=collate)  # (+) can resume anywhere
    numbered = cm.with_row_ids(rows[-64:])  # (+)
    held_out = DataLoader(numbered, batch_size=16, collate_fn=collate)
    trainer.fit(Bert(tiny_bert(tokenizer)), train, held_out)
    print(f"mean ratio of steps 1 to 50: {trainer.callback_metrics['masking_ratio']:.3f}")
    loss = trainer.validate(trainer.lightning_module, held_out, verbose=False)[0]["val_loss"]
    print(f"loss at 15 %: {loss:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
