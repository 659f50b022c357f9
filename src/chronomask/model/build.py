"""Makes the model of a run: from an architecture's name and sizes, or from a checkpoint folder.

Vocabulary size and special token ids always come from the data's tokenizer. Initial weights depend on
the seed alone, so arms that share architecture, tokenizer and seed start from the same weights.
Nothing is downloaded and no code from a model folder is run.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from chronomask.errors import DataError, UsageError, nearest
from chronomask.model.attention import check_supported, implementation_for, position_offset
from chronomask.model.config import AttentionScope, FromCheckpoint, FromConfig
from chronomask.model.export import without_bars
from chronomask.model.hub import model_folder

__all__ = [
    "build_model",
    "checkpoint_activations",
    "load_tokenizer",
    "open_model",
    "skeleton",
]


_FROM_TOKENIZER = (
    "pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id",
)  # fmt: skip


def build_model(
    config: FromConfig | FromCheckpoint,
    tokenizer: PreTrainedTokenizerBase,
    *,
    row_length: int,
    seed: int,
    attention: AttentionScope,
) -> PreTrainedModel:
    """A float32 model on the host, in training mode.

    Raises UsageError for an unknown architecture or field, a model too small for the rows or the
    vocabulary, a checkpoint of another vocabulary, or an architecture that cannot keep documents apart.
    """
    if isinstance(config, FromCheckpoint):
        folder = model_folder(config.path)
        model = open_model(folder, attention)
        _check_vocabulary(folder, tokenizer)
    else:
        architecture = _architecture(config, tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForMaskedLM.from_config(
                architecture, attn_implementation=_offered(architecture, attention)
            )
        model = model.float()
    check_supported(model, attention)
    _check_sizes(model, len(tokenizer), row_length)
    return model.train()


def open_model(path: str | Path, attention: AttentionScope) -> PreTrainedModel:
    """The float32 model in a local folder; raises UsageError or DataError."""
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UsageError(f"{path} is not a model folder: it has no config.json")
    try:
        architecture = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        with without_bars():
            model = AutoModelForMaskedLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation=_offered(architecture, attention),
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened as a masked language model: {error}") from None
    # Loaded tensors are views into the mapped file, at any address. Matrix products round differently
    # at addresses that are not aligned, so a resumed run would not be bit for bit the one it resumes.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model.train()


def skeleton(
    config: FromConfig | FromCheckpoint,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    row_length: int,
    attention: AttentionScope,
) -> PreTrainedModel:
    """The model without weights, on torch's ``meta`` device, refused as :func:`build_model` does.

    Without a tokenizer it has the architecture's own vocabulary.
    """
    if isinstance(config, FromCheckpoint):
        folder = model_folder(config.path)
        architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
        if tokenizer is not None:
            _check_vocabulary(folder, tokenizer)
    else:
        architecture = _architecture(config, tokenizer)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(
            architecture, attn_implementation=_offered(architecture, attention)
        )
    check_supported(model, attention)
    _check_sizes(
        model, model.config.vocab_size if tokenizer is None else len(tokenizer), row_length
    )
    return model


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let ``model`` keep the inputs of its layers alone, and compute the rest again on the way back.

    Dropout is drawn again as it was, so losses and gradients stay what they are. Raises UsageError for
    an architecture that cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise UsageError(
            f"model type '{model.config.model_type}' cannot compute activations again; "
            "set activation_checkpointing: false, or raise micro_batches to save memory"
        )
    # transformers renamed it; versions without the new name have the old one
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder; raises DataError."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened as a tokenizer: {error}") from None


def _architecture(
    config: FromConfig, tokenizer: PreTrainedTokenizerBase | None
) -> PretrainedConfig:
    """The architecture's config with the tokenizer's vocabulary, if one is given, and the overrides."""
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UsageError(
            f"model.model_type is '{config.model_type}'; "
            f"{nearest(config.model_type, MODEL_FOR_MASKED_LM_MAPPING_NAMES)}"
        )
    defaults = AutoConfig.for_model(config.model_type)
    known = _fields_of(defaults)
    for key in config.overrides:
        if key not in known:
            raise UsageError(
                f"model.overrides has unknown field '{key}'; {nearest(key, sorted(known))}"
            )
    values = {} if tokenizer is None else _from_tokenizer(tokenizer, defaults)
    try:
        return AutoConfig.for_model(config.model_type, **(values | config.overrides))
    except (
        Exception
    ) as error:  # each config class validates in its own way and raises what it likes
        raise UsageError(
            f"model.overrides does not make a '{config.model_type}': {error}"
        ) from None


def _from_tokenizer(
    tokenizer: PreTrainedTokenizerBase, defaults: PretrainedConfig
) -> dict[str, Any]:
    """Fields of an architecture that the tokenizer decides."""
    values: dict[str, Any] = {"vocab_size": len(tokenizer)}
    for key in _FROM_TOKENIZER:
        if hasattr(defaults, key):
            values[key] = getattr(tokenizer, key, None)
    # Tokenizers without begin and end marks bracket a document with [CLS] and [SEP].
    for key, stand_in in (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id")):
        if values.get(key, 0) is None and getattr(defaults, key) is not None:
            values[key] = getattr(tokenizer, stand_in, None)
    return values


def _fields_of(defaults: PretrainedConfig) -> set[str]:
    """Names an architecture's config takes: its fields, their other names, and older keywords."""
    names = {field.name for field in dataclasses.fields(defaults)} | set(defaults.attribute_map)
    own = vars(type(defaults)).get("__post_init__")
    if own is not None:  # older keywords are read there, as kwargs.pop("name", …)
        texts = (text for text in own.__code__.co_consts if isinstance(text, str))
        names |= {text for text in texts if text.isidentifier()}
    return {name for name in names if not name.startswith("_")}


def _offered(architecture: PretrainedConfig, attention: AttentionScope) -> str | None:
    """Our attention where the architecture takes one; its own default otherwise."""
    model_class = AutoModelForMaskedLM._model_mapping.get(type(architecture), None)
    if not getattr(model_class, "_supports_attention_backend", False):
        return None
    return implementation_for(attention)


def _check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    if not (path / "tokenizer.json").is_file():
        raise UsageError(
            f"{path} has no tokenizer.json, so its vocabulary cannot be checked against the data's; "
            "put the tokenizer the model was trained with beside it"
        )
    own = load_tokenizer(path)
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        raise UsageError(
            f"the vocabulary of {path} ({len(theirs):,} tokens) is not the data's ({len(ours):,}; "
            f"{differing:,} differ): prepare the data with the tokenizer in {path}"
        )
    theirs, ours = _how_it_splits(own), _how_it_splits(tokenizer)
    differing = [key for key, value in ours.items() if theirs[key] != value]
    if differing:
        raise UsageError(
            f"the tokenizer of {path} splits text otherwise than the data's (its {', '.join(differing)} "
            f"differs): prepare the data with the tokenizer in {path}"
        )


def _how_it_splits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of a fast tokenizer that decide which ids a text becomes; empty for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    values = json.loads(backend.to_str()) if backend is not None else {}
    return {key: values.get(key) for key in ("normalizer", "pre_tokenizer", "model")}


def _check_sizes(model: PreTrainedModel, vocab_size: int, row_length: int) -> None:
    if model.config.vocab_size < vocab_size:
        raise UsageError(
            f"the model knows {model.config.vocab_size:,} tokens, the data's tokenizer has {vocab_size:,}"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    needed = row_length + position_offset(model)
    if positions is not None and positions < needed:
        raise UsageError(
            f"the model has {positions} positions, rows of {row_length} tokens need {needed}: "
            f"set model.overrides.max_position_embeddings={needed} or prepare shorter rows"
        )
