"""Time-variant masking in a script that uses Lightning: lines marked (+) are new.

python examples/lightning_module.py [output folder]
"""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from scraps import paragraphs, tiny_bert, tokenised, train_tokenizer
from torch.utils.data import DataLoader

from chronomask.integrations.lightning import TimeVariantMasking  # (+)
from chronomask.integrations.order import KeyedLoader  # (+)
from chronomask.integrations.rows import RowCollator, with_row_ids  # (+)
from chronomask.masking.masker import MaskingConfig  # (+)


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
    collate = RowCollator(tokenizer)  # (+) instead of DataCollatorForLanguageModeling
    config = MaskingConfig.parse(  # (+)
        {
            "ratio": {"kind": "linear", "start": 0.30, "end": 0.15},
            "content": {"kind": "token_accuracy", "every": 20},
        }
    )
    trainer = pl.Trainer(
        default_root_dir=output,
        max_steps=60,
        logger=False,
        enable_progress_bar=False,
        callbacks=[TimeVariantMasking(config, tokenizer)],  # (+)
    )
    train = KeyedLoader(rows[:-64], batch_size=16, collate_fn=collate)  # (+) can resume anywhere
    held_out = DataLoader(
        with_row_ids(rows[-64:]), batch_size=16, collate_fn=collate
    )  # (+) row ids
    trainer.fit(Bert(tiny_bert(tokenizer)), train, held_out)
    print(f"mean ratio of steps 1 to 50: {trainer.callback_metrics['masking_ratio']:.3f}")
    loss = trainer.validate(trainer.lightning_module, held_out, verbose=False)[0]["val_loss"]
    print(f"loss at 15 %: {loss:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
