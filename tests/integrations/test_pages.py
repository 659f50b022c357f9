"""The pages of docs/integrations: their code, imports included, runs as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.support.documents import python_blocks
from tests.support.worded_rows import ROW_LENGTH, TEXT, tiny_model

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*fork"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


class Module(pl.LightningModule):
    """What a reader of the page has."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


@pytest.fixture
def readers_own(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The names that the pages say their reader has."""
    model = tiny_model(tokenizer)
    texts = tokenizer(TEXT * 8, truncation=True, max_length=ROW_LENGTH)
    rows = [{"input_ids": ids} for ids in texts["input_ids"]]
    return {
        "tokenizer": tokenizer,
        "model": model,
        "module": Module(model),
        "optimiser": torch.optim.AdamW(model.parameters()),
        "rows": rows,
        "held_out": rows[:8],
        "held_out_rows": rows[:8],
        "num_epochs": 2,
        "num_steps": 4,
    }


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_code_of_a_page_runs(
    page: str, readers_own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    blocks = python_blocks(text)
    assert "import chronomask as cm" in blocks[0]
    monkeypatch.chdir(tmp_path)
    before = [p.detach().clone() for p in readers_own["model"].parameters()]
    names = dict(readers_own)
    for number, code in enumerate(blocks, start=1):
        exec(compile(code, f"{page}.md, block {number}", "exec"), names)
    if page == "workers":  # its loop leaves the step to the reader
        assert sum((batch["labels"] != -100).sum() for batch in names["loader"]) > 0
        return
    after = readers_own["model"].parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
