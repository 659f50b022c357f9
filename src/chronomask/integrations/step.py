"""One run's masking inside another framework: what is masked, what the logs show, what is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from chronomask.errors import DataError, UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary, fixed_masker
from chronomask.masking.rows import as_rows
from chronomask.masking.tally import score
from chronomask.storage import write_bytes
from chronomask.types import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["STATE_FILE", "StepMasking"]

STATE_FILE = "chronomask.safetensors"
"""Name of the masking state in a checkpoint folder."""


class StepMasking:
    """A :class:`~chronomask.masking.masker.Masker` and what a framework's trainer needs around it.

    ``config``: a masking config, a dict of its fields, or the path of one as YAML; ``class_names``: names of
    the classes in the data's ``token_class`` column, "none" first. Evaluation always masks 15 % of the
    tokens, uniformly and the same at every evaluation.
    """

    def __init__(
        self,
        config: MaskingConfig | Mapping[str, Any] | str | Path,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        config = MaskingConfig.of(config)
        if config.progress != "steps":
            raise UsageError(
                f"masking.progress is '{config.progress}'; inside another framework's trainer only "
                "'steps' is known beforehand: set masking.progress to it"
            )
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.masker = Masker(config, vocabulary, class_names, seed).to(device)
        self._evaluation = fixed_masker(vocabulary)  # the same for every seed and schedule
        self._ratios: list[tuple[float, int, Any]] = []

    def mask(self, batch: Mapping[str, Any], epoch: int, progress: float) -> MaskedBatch:
        """A :class:`~chronomask.masking.rows.RowCollator` batch masked for training."""
        masked = self.masker(as_rows(batch, epoch=epoch), progress)
        self._ratios.append((masked.masking_ratio, masked.num_predicted, masked.num_maskable))
        return masked

    def mask_fixed(self, batch: Mapping[str, Any]) -> MaskedBatch:
        """The batch masked for evaluation."""
        return self._evaluation(as_rows(batch, epoch=0), 0.0)

    def observed_losses(self, masked: MaskedBatch, logits: torch.Tensor) -> torch.Tensor:
        """float32 [N] with graph: the predicted tokens' losses, which the masker observes."""
        losses, correct = score(logits, masked)
        self.masker.observe(masked, losses, correct)
        return losses

    def take_ratios(self) -> dict[str, float]:
        """``masking_ratio`` (asked) and ``masking_ratio_achieved``, over all since the last call."""
        if not self._ratios:
            return {}
        taken, self._ratios = self._ratios, []
        maskable = [int(number) for _, _, number in taken]
        asked = sum(ratio * n for (ratio, _, _), n in zip(taken, maskable, strict=True))
        achieved = sum(number for _, number, _ in taken)
        total = max(1, sum(maskable))
        return {"masking_ratio": asked / total, "masking_ratio_achieved": achieved / total}

    def settings(self) -> str:
        """JSON of what must be equal for a run to go on: configuration, classes and seed."""
        masker = self.masker
        names = list(masker.class_names)
        values = {"masking": masker.config.to_dict(), "class_names": names, "seed": masker.seed}
        return json.dumps(values)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors on the host."""
        return {name: tensor.cpu() for name, tensor in self.masker.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor], settings: str, where: str) -> None:
        """Restore; raises UsageError when ``settings``, saved with the state, are not this run's."""
        saved = json.loads(settings)
        for name, value in json.loads(self.settings()).items():
            if saved.get(name) != value:
                raise UsageError(
                    f"{where} was saved with {name} = {saved.get(name)!r}, this run has "
                    f"{value!r}: masks would change in the middle of training; resume with the saved "
                    "settings, or start a new run from the checkpoint's weights"
                )
        self.masker.load_state_dict(state)

    def save(self, folder: Path) -> None:
        """Write :data:`STATE_FILE` into a checkpoint folder. Raises RunError."""
        content = save(self.state_dict(), metadata={"settings": self.settings()})
        write_bytes(folder / STATE_FILE, content)

    def load(self, folder: Path) -> None:
        """Restore :meth:`save`; raises DataError when the folder has no readable state."""
        path = folder / STATE_FILE
        if not path.is_file():
            raise DataError(
                f"checkpoint {folder} has no {STATE_FILE}: it was written without time-variant "
                "masking; start a new run from its weights instead of resuming"
            )
        try:
            with safe_open(path, framework="pt") as file:
                settings = (file.metadata() or {})["settings"]
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.load_state_dict(state, settings, where=str(path))
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); use another checkpoint") from None
