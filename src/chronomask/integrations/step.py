"""One run's masking as frameworks need it: the step's masks, feedback, and state in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chronomask.errors import DataError, UsageError
from chronomask.integrations.rows import rows_of
from chronomask.masking.masker import Masker, MaskingConfig, Vocabulary, fixed_masker
from chronomask.masking.tally import score
from chronomask.types import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["STATE_FILE", "StepMasking"]

STATE_FILE = "chronomask.safetensors"
"""Name of the masking state in a checkpoint folder."""


class StepMasking:
    """Masks every micro-batch of a step alike, and learns from the step once it is done.

    ``class_names``: names of the classes in the data's ``token_class`` column, "none" first.
    Evaluation always masks 15 % of the tokens, uniformly and the same at every evaluation.
    """

    def __init__(
        self,
        config: MaskingConfig,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if config.progress != "steps":
            raise UsageError(
                f"masking.progress is '{config.progress}'; inside another framework's trainer the "
                "length of training is known in 'steps' alone"
            )
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.masker = Masker(config, vocabulary, class_names, seed).to(device)
        self.evaluation = fixed_masker(vocabulary)  # the same for every seed and schedule
        self._ratios: list[tuple[float, int, Any]] = []

    @property
    def needs_feedback(self) -> bool:
        """Whether losses must be observed: the content or the ratio responds to them."""
        return self.masker.needs_feedback

    @property
    def watches_validation(self) -> bool:
        """Whether the ratio responds to the validation loss."""
        return self.masker.watches_validation

    def mask(self, batch: Mapping[str, Any], epoch: int, progress: float) -> MaskedBatch:
        """A :class:`~chronomask.integrations.rows.RowCollator` batch masked for training."""
        masked = self.masker(rows_of(batch, epoch), progress)
        self._ratios.append((masked.masking_ratio, masked.num_predicted, masked.num_maskable))
        return masked

    def mask_fixed(self, batch: Mapping[str, Any]) -> MaskedBatch:
        """The batch masked for evaluation."""
        return self.evaluation(rows_of(batch), 0.0)

    def losses(self, masked: MaskedBatch, logits: torch.Tensor) -> torch.Tensor:
        """float32 [N] with graph: the predicted tokens' losses, tallied for :meth:`end_step`."""
        losses, correct = score(logits, masked)
        self.masker.observe(masked, losses, correct)
        return losses

    def evaluation_losses(self, masked: MaskedBatch, logits: torch.Tensor) -> torch.Tensor:
        """float32 [N]: losses that nothing is learnt from."""
        return score(logits, masked)[0]

    def end_step(self) -> None:
        """Call once per optimiser step, on every rank; in force from the next step on."""
        self.masker.end_step()

    def observe_validation(self, loss: float) -> None:
        """Let a responsive ratio take in a validation loss (nats per token)."""
        self.masker.observe_validation(loss)

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

    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to go on: configuration, classes and seed."""
        masker = self.masker
        names = list(masker.class_names)
        return {"masking": masker.config.to_dict(), "class_names": names, "seed": masker.seed}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors on the host."""
        return {name: tensor.cpu() for name, tensor in self.masker.state_dict().items()}

    def load_state_dict(
        self, state: dict[str, torch.Tensor], settings: Mapping[str, Any], where: str
    ) -> None:
        """Restore; raises UsageError when ``settings``, saved with the state, are not this run's."""
        own = self.settings()
        for name, value in own.items():
            if settings.get(name) != value:
                raise UsageError(
                    f"{where} was saved with {name} = {settings.get(name)!r}, this run has "
                    f"{value!r}: masks would change half-way; resume with the saved settings, or "
                    "start a new run from the checkpoint's weights"
                )
        self.masker.load_state_dict(state)

    def save(self, folder: Path) -> None:
        """Write :data:`STATE_FILE` into a checkpoint folder (renamed into place)."""
        partial = folder / f"{STATE_FILE}.partial"
        save_file(self.state_dict(), partial, metadata={"settings": json.dumps(self.settings())})
        partial.replace(folder / STATE_FILE)

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
                settings = json.loads((file.metadata() or {})["settings"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); use another checkpoint") from None
        self.load_state_dict(state, settings, where=str(path))
