"""Writes a folder that transformers opens: weights, config, tokenizer and a model card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask import __version__
from chronomask.model.documents import position_offset
from chronomask.model.open import quietly
from chronomask.storage import read_object, write_json

__all__ = ["export", "model_card", "weights_sha256"]


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write ``folder`` so that ``AutoModelForMaskedLM.from_pretrained(folder)`` opens it.

    safetensors weights in float32, the architecture's config, the tokenizer, ``README.md``.
    ``weights``: whole tensors by the names of the model's ``state_dict``, tied ones sharing memory; the
    model's own if not given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    tokenizer.save_pretrained(folder)
    _state_longest_text(model, folder / "tokenizer_config.json")
    for name in ("config.json", "tokenizer_config.json"):
        _name_no_code(folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _state_longest_text(model: PreTrainedModel, file: Path) -> None:
    """Let the tokenizer cut texts at what the model can read, whatever the length of the training rows."""
    positions = getattr(model.config, "max_position_embeddings", None)
    values = read_object(file)
    if values is not None and isinstance(positions, int) and positions > 0:
        write_json(file, values | {"model_max_length": positions - position_offset(model)})


def _name_no_code(file: Path) -> None:
    """Take ``auto_map`` out of a config: it names Python files, which are not in the folder."""
    values = read_object(file)
    if values is not None and "auto_map" in values:
        del values["auto_map"]
        write_json(file, values)


def weights_sha256(model: PreTrainedModel) -> str:
    """SHA-256 over the names and values of a model's weights, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        # As bytes, since numpy has no bfloat16.
        total.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()


def model_card(
    *,
    name: str,
    model_type: str,
    num_parameters: int,
    data_fingerprint: str,
    masking: Mapping[str, Any],
    counters: Mapping[str, int],
    losses: Mapping[str, float | None],
    yardsticks: Sequence[Sequence[str]] = (),
    weights: str | None = None,
) -> str:
    """Markdown with the YAML head that model hubs read: what was trained, on what and how far.

    ``masking``: the masking part of the run's config, or that and what rows are trained for beside it;
    ``counters``: step, steps, tokens_seen and masked_tokens, and causal_tokens where rows are causal;
    ``losses``: named losses in nats per predicted token, None where not measured;
    ``yardsticks``: rows of a table of losses with their numbers of predictions, its headings first;
    ``weights``: which of a checkpoint's weights these are, if there are several.
    """
    head = yaml.safe_dump(
        {
            "library_name": "transformers",
            "pipeline_tag": "fill-mask",
            "tags": ["fill-mask", model_type, "chronomask"],
        },
        sort_keys=False,
    )
    measured = "\n".join(
        f"| {label} | {'not measured' if loss is None else f'{loss:.4f}'} |"
        for label, loss in losses.items()
    )
    following = counters.get("causal_tokens")
    causal = "" if following is None else f"| next tokens predicted | {following:,} |\n"
    which = "" if weights is None else f"| weights | {weights} |\n"
    schedule = yaml.safe_dump(dict(masking), sort_keys=False, allow_unicode=True).rstrip()
    return f"""---
{head}---

# {name}

A masked language model of type `{model_type}` with {num_parameters:,} parameters, trained with
chronomask {__version__}{_course(masking)}.

| | |
|---|---|
| optimiser steps | {counters["step"]:,} of {counters["steps"]:,} |
| tokens seen | {counters["tokens_seen"]:,} |
| tokens predicted | {counters["masked_tokens"]:,} |
{causal}| data fingerprint | `{data_fingerprint}` |
{which}
| loss (nats per predicted token) | |
|---|---|
{measured}
{_table(yardsticks)}
## Masking

```yaml
{schedule}
```

## Use

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The yardsticks of a card, and what they are; nothing where there are none."""
    if not rows:
        return ""
    headings, *others = [f"| {' | '.join(row)} |" for row in rows]
    lines = [headings, "|" + "---|" * len(rows[0]), *others]
    return """
Held-out text with whole words hidden at four ratios, and with a single token of every document hidden.
Each cell is a loss in nats per predicted token, with the number of predictions behind it.

""" + "".join(f"{line}\n" for line in lines)


def _course(card: Mapping[str, Any]) -> str:
    """What a card says of masking over training: that it changes, that it does not, or nothing where the
    config alone does not decide it.
    """
    masking = card.get("masking", card)
    ratio, content, strategy = (masking.get(part, {}) for part in ("ratio", "content", "strategy"))
    prefers, masks = content.get("kind"), strategy.get("kind")
    learns = prefers not in ("none", "fixed", "scores", "model_scores")
    strength = None if prefers == "none" else content.get("strength")
    replaced = [masking.get(f"{which}_replace_prob") for which in ("mask", "random")]
    moves = any(_moves(schedule) for schedule in (ratio, strength, *replaced))
    if learns or moves or masks in ("phased", "explored"):
        return " under masking that changes over\ntraining"
    if (
        prefers != "none"
        or masks not in ("token", "whole_word", "span", "pmi")
        or masking is not card
    ):
        return ""
    return " under masking that stays the same\nover training"


def _moves(schedule: Any) -> bool:
    """Whether a number or a schedule changes over training; a law of rows does so where a part of it does."""
    if isinstance(schedule, list):
        return any(_moves(part) for part in schedule)
    if not isinstance(schedule, Mapping) or schedule.get("kind") == "constant":
        return False
    kind = str(schedule.get("kind", "law_rows"))
    return not kind.endswith("_rows") or any(_moves(part) for part in schedule.values())
