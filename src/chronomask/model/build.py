"""Makes the model of a run: from an architecture's name and sizes, or from a checkpoint folder.

Vocabulary size and special token ids always come from the data's tokenizer. Initial weights depend on
the seed alone, so arms that share architecture, tokenizer and seed start from the same weights.
Nothing is downloaded and no code from a model folder is run.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from chronomask.errors import DataError, UsageError, nearest
from chronomask.model.attention import check_supported, implementation_for
from chronomask.model.config import AttentionScope, FromCheckpoint, FromConfig
from chronomask.model.documents import position_offset
from chronomask.model.host import use_host_kernels
from chronomask.model.modernbert import use_one_pass_gradients
from chronomask.model.open import (
    MissingHead,
    check_architecture,
    check_tokens,
    model_folder,
    one_line,
    open_config,
    open_model,
    open_tokenizer,
)
from chronomask.model.positions import lengthen, way_to_lengthen
from chronomask.model.sizes import check_memory, fault_of_size, number_for
from chronomask.vocabulary import vocabulary_size

__all__ = ["build_model", "checkpoint_activations", "skeleton"]

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
    causal: bool = False,
    branched: bool = False,
) -> PreTrainedModel:
    """A float32 model on the host, in training mode; ``branched``: it is that of a run that goes on.

    Raises UsageError for an unknown architecture or field, values of fields that make no model, a model
    too small for the rows or the vocabulary, or too large for the machine's memory, a checkpoint of another
    vocabulary or without a head, or an architecture that cannot keep documents apart, or, if ``causal``,
    rows from what follows.
    """
    if isinstance(config, FromCheckpoint):
        config = config.model_copy(update={"path": str(model_folder(config.path))})
    # Without weights first: what cannot be is refused before a large model is drawn or read.
    check_memory(
        skeleton(
            config,
            tokenizer,
            row_length=row_length,
            attention=attention,
            causal=causal,
            branched=branched,
        )
    )
    if isinstance(config, FromCheckpoint):
        model = _from_checkpoint(config, seed)
        if _positions_lacking(model, row_length):
            lengthen(model, row_length + position_offset(model))
    else:
        architecture = _architecture(config, tokenizer)
        with _draw_with(seed):
            model = AutoModelForMaskedLM.from_config(
                architecture, attn_implementation=implementation_for(architecture)
            )
        model = model.float()
        use_one_pass_gradients(model)
        use_host_kernels(model)
    return model.train()


def skeleton(
    config: FromConfig | FromCheckpoint,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    row_length: int,
    attention: AttentionScope,
    causal: bool = False,
    branched: bool = False,
    vocab_size: int | None = None,
) -> PreTrainedModel:
    """The model without weights, on torch's ``meta`` device, refused as :func:`build_model` does.

    Without a tokenizer it has the architecture's own vocabulary, or ``vocab_size`` tokens.
    """
    if isinstance(config, FromCheckpoint):
        folder = model_folder(config.path)
        architecture = open_config(folder)
        check_architecture(folder, architecture)
        if tokenizer is not None:
            _check_vocabulary(folder, tokenizer)
    else:
        architecture = _architecture(config, tokenizer, vocab_size)
    try:
        model = _without_weights(architecture)
    except Exception as error:  # architectures check themselves and raise what they like
        raise UsageError(_why_no_model(config, tokenizer, error)) from None
    check_supported(model, attention, causal)
    if tokenizer is not None:
        _check_size(config, model, vocabulary_size(tokenizer))
    if _positions_lacking(model, row_length):
        _check_may_lengthen(config, model, row_length, branched)
        lengthen(model, row_length + position_offset(model))
    return model


def _from_checkpoint(config: FromCheckpoint, seed: int) -> PreTrainedModel:
    try:
        with _draw_with(seed):  # of a new head
            return open_model(config.path, new_head=config.new_head)
    except MissingHead as error:
        raise UsageError(
            f"{error}; name a model that has one, or draw a new one with model.new_head=true"
        ) from None


@contextmanager
def _draw_with(seed: int) -> Iterator[None]:
    """Let torch draw on the host as the seed says, and leave its generator as it was.

    Devices are left alone: to ask one for its state makes a context on it, on each of a machine's in turn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _without_weights(architecture: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return AutoModelForMaskedLM.from_config(
            architecture, attn_implementation=implementation_for(architecture)
        )


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let ``model`` keep the inputs of its layers alone, and compute the rest again on the way back.

    Dropout is drawn again as it was, so losses and gradients stay what they are. Raises UsageError for
    an architecture that cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise UsageError(
            f"model type '{model.config.model_type}' cannot compute activations again; "
            "set activation_checkpointing=false, or raise micro_batches to save memory"
        )
    # transformers renamed it; versions without the new name have the old one
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def _architecture(
    config: FromConfig, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int | None = None
) -> PretrainedConfig:
    """The architecture's config with the tokenizer's vocabulary, or the size of one, if it is given, and the
    overrides.
    """
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UsageError(
            f"model.model_type is '{config.model_type}'; "
            f"{nearest(config.model_type, MODEL_FOR_MASKED_LM_MAPPING_NAMES)}"
        )
    defaults = AutoConfig.for_model(config.model_type)
    known = _fields_of(defaults)
    for key, value in config.overrides.items():
        if key not in known:
            raise UsageError(
                f"model.overrides has unknown field '{key}'; {nearest(key, sorted(known))}"
            )
        if fault := fault_of_size(key, value, defaults):
            raise UsageError(f"model.overrides.{key} is {value}; {fault}")
    values = {} if tokenizer is None else _from_tokenizer(tokenizer, defaults)
    if vocab_size is not None:  # the architecture's own special tokens may lie beyond it
        values = {key: 0 for key in _FROM_TOKENIZER if hasattr(defaults, key)}
        values["vocab_size"] = vocab_size
    given = {key: number_for(key, value, defaults) for key, value in config.overrides.items()}
    try:
        return AutoConfig.for_model(config.model_type, **(values | given))
    except (
        Exception
    ) as error:  # each config class validates in its own way and raises what it likes
        raise UsageError(_with_causes(config, error, [])) from None


def _why_no_model(
    config: FromConfig | FromCheckpoint,
    tokenizer: PreTrainedTokenizerBase | None,
    error: Exception,
) -> str:
    """What an architecture raised, with the fields that caused it."""
    if isinstance(config, FromCheckpoint):
        return f"{config.path}/config.json makes no model: {one_line(error)}"
    causes = []
    for key in config.overrides:  # a field is a cause if the model can be made without it
        others = {name: value for name, value in config.overrides.items() if name != key}
        try:
            without = config.model_copy(update={"overrides": others})
            _without_weights(_architecture(without, tokenizer))
        except Exception:
            continue
        causes.append(key)
    return _with_causes(config, error, causes)


def _with_causes(config: FromConfig, error: Exception, causes: Sequence[str]) -> str:
    """An error's text behind the overrides that it names, or that are known to have caused it."""
    text = one_line(error)
    words = set(re.findall(r"[a-z]+", text.lower()))
    named = [
        key
        for key, value in config.overrides.items()
        if key in causes
        or set(key.split("_")) - {"num"} <= words
        or (isinstance(value, str) and value in text)
    ]
    shown = ", ".join(f"{key}={config.overrides[key]}" for key in named or config.overrides)
    return f"model.overrides {shown} make no '{config.model_type}': {text}"


def _from_tokenizer(
    tokenizer: PreTrainedTokenizerBase, defaults: PretrainedConfig
) -> dict[str, Any]:
    """Fields of an architecture that the tokenizer decides."""
    values: dict[str, Any] = {"vocab_size": vocabulary_size(tokenizer)}
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


def _check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError unless the tokenizer beside a checkpoint has the vocabulary of the data's."""
    try:
        own = open_tokenizer(path)
    except DataError as error:
        raise UsageError(
            f"{path} has no tokenizer, so its vocabulary cannot be checked against the data's; put the "
            f"tokenizer the model was trained with beside it ({error})"
        ) from None
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        raise UsageError(
            f"the vocabulary of {path} ({len(theirs):,} tokens) is not the data's ({len(ours):,}; "
            f"{differing:,} differ): prepare the data with the tokenizer in {path}"
        )
    theirs, ours = _how_it_splits(own), _how_it_splits(tokenizer)
    differing = [key for key, value in ours.items() if theirs[key] != value]
    # Data that an earlier version prepared has what transformers' class took of the file.
    if differing and ours != _how_it_splits(open_tokenizer(path, as_class=True)):
        raise UsageError(
            f"the tokenizer of {path} splits text otherwise than the data's (its {', '.join(differing)} "
            f"differs): prepare the data with the tokenizer in {path}"
        )


def _how_it_splits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of a fast tokenizer that decide which ids a text becomes; empty for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    values = json.loads(backend.to_str()) if backend is not None else {}
    return {key: values.get(key) for key in ("normalizer", "pre_tokenizer", "model")}


def _check_size(
    config: FromConfig | FromCheckpoint, model: PreTrainedModel, vocab_size: int
) -> None:
    """Raise UsageError unless the model has weights for so many tokens."""
    if isinstance(config, FromCheckpoint):
        check_tokens(config.path, model.config, vocab_size)
    elif model.config.vocab_size < vocab_size:
        raise UsageError(
            f"model.overrides.vocab_size is {model.config.vocab_size:,}, and the data's tokenizer has "
            f"{vocab_size:,} tokens: leave it out, and the model has as many"
        )


def _positions_lacking(model: PreTrainedModel, row_length: int) -> bool:
    """Whether rows are longer than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions is not None and positions < row_length + position_offset(model)


def _check_may_lengthen(
    config: FromConfig | FromCheckpoint, model: PreTrainedModel, row_length: int, branched: bool
) -> None:
    """Raise UsageError unless a checkpoint is to have more positions and can."""
    positions, offset = model.config.max_position_embeddings, position_offset(model)
    needed = row_length + offset
    if isinstance(config, FromConfig):
        mend = f"set model.overrides.max_position_embeddings={needed}"
    elif way_to_lengthen(model) is None:
        mend = f"'{model.config.model_type}' cannot be given more"
    elif branched:
        mend = (
            "a branch keeps them; begin a run without branch from its weights, with "
            f"model={{kind: checkpoint, path: '{config.path}', longer_rows: true}}"
        )
    elif config.longer_rows:
        return
    else:
        mend = "set model.longer_rows=true to make more of those it has"
    join = ":" if way_to_lengthen(model) is None and isinstance(config, FromCheckpoint) else " or"
    raise UsageError(
        f"the model has {positions} positions, rows of {row_length} tokens need {needed}: "
        f"{mend}{join} prepare shorter rows (prepare --row-length {positions - offset})"
    )
