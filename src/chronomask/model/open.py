"""Opens what a model folder holds: its config, its tokenizer, its weights. Nobody else does.

Local files alone are read, weights from safetensors alone, and Python that a folder brings is never
run. Loading is strict: a weight that is missing, left over or of another shape is refused by name,
unless it belongs to a head that the caller replaces or does not use.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from chronomask.errors import DataError, UsageError, shown
from chronomask.folders import what_it_is
from chronomask.model.sizes import check_memory, fault_of_size
from chronomask.model.tokenizer_file import follow_file
from chronomask.storage import READABLE, is_file_name, read_object

if TYPE_CHECKING:  # preparing text opens tokenizers in processes that have no use for torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MissingHead",
    "check_architecture",
    "check_tokens",
    "download",
    "fault_of_architecture",
    "is_hub_name",
    "model_folder",
    "name_in_cache",
    "one_line",
    "open_config",
    "open_model",
    "open_tokenizer",
    "quietly",
    "snapshot_within",
    "weight_files",
]

logger = logging.getLogger(__name__)

_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
"""What torch's wrappers (DataParallel, compile) put into the names of weights."""
_MODELLING = re.compile(r"transformers\.models\.\w+\.modeling_")
"""Modules of transformers that hold an architecture's forward pass."""
_LAYERS = ("chronomask.model.host", "chronomask.model.dropout")
"""Modules whose layers stand in for torch's in a model, so that what they are given is the architecture's."""
_TOKENIZER_FILES = ["*.json", "*.txt", "*.model"]
_FILES = [*_TOKENIZER_FILES, "*.safetensors", "README.md"]
"""Of a hub model: config, tokenizer, weights and card; nothing that could hold code."""
_CACHED = "models--"
"""What the names of folders in the hub's cache begin with: models--OWNER--NAME/snapshots/COMMIT."""
_WHOLE = ("I", "U", "BOOL")
"""How safetensors' names of types begin that hold no fractions."""
_NAMED = 3
"""Weights that a message names before it only counts."""


class MissingHead(UsageError):
    """A folder holds a backbone, and no head for the task it is asked for."""


def model_folder(name: str | Path) -> Path:
    """The folder of a model: a local one, or the local copy of a hub model.

    Raises UsageError where there is none.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if not is_hub_name(str(name)):
        raise UsageError(
            f"{name} is not a model folder: it has no config.json{_place_of_model(path)}"
        )
    return download(str(name))


def _place_of_model(folder: Path) -> str:
    """The end of a refusal of a folder that is no model: what it is instead, or what is to be named."""
    return (
        snapshot_within(folder)
        or what_it_is(folder)
        or "; name the folder of a model, such as transformers' save_pretrained writes, or a hub model by "
        "OWNER/NAME"
    )


def snapshot_within(folder: Path) -> str:
    """The end of a refusal: where the files are in a folder of the hub's cache; empty for another folder."""
    snapshots = sorted((folder / "snapshots").glob("*")) if _is_cached(folder) else []
    if not snapshots:
        return ""
    current = folder / "refs" / "main"
    commit = current.read_text(encoding="utf-8").strip() if current.is_file() else ""
    newest = next((each for each in snapshots if each.name == commit), snapshots[-1])
    return f"; it is a model in the hub's cache, so name its snapshot, {newest}"


def name_in_cache(folder: Path) -> str | None:
    """The hub name of a snapshot in the hub's cache, whose own name is a commit; None for another folder."""
    snapshots = folder.resolve().parent
    if snapshots.name != "snapshots" or not _is_cached(snapshots.parent):
        return None
    return snapshots.parent.name.removeprefix(_CACHED).replace("--", "/")


def _is_cached(folder: Path) -> bool:
    return folder.resolve().name.startswith(_CACHED)


def is_hub_name(name: str) -> bool:
    """Whether a text can only be a model's name on the hub, ``owner/name``: no such folder is there."""
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    return not (looks_like_a_path or Path(name).exists())


def download(name: str, *, weights: bool = True) -> Path:
    """The local copy of a hub model's config and tokenizer, its ``weights`` and card; raises UsageError.

    It is fetched unless the hub's cache has it. Weights are read from safetensors alone.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(name, allow_patterns=_FILES if weights else _TOKENIZER_FILES)
        )
    except LocalEntryNotFoundError:
        raise UsageError(
            f"{name} is not a local folder, and cannot be loaded from the hub: it is not among the models on "
            "this machine, and the hub cannot be reached (or HF_HUB_OFFLINE is set). Where there is a "
            f"network: hf download {shlex.quote(name)} --local-dir FOLDER; then give that folder"
        ) from None
    except Exception as error:  # the hub's client raises what its transport layers do
        first = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"{name} is not a local folder, and cannot be loaded from the hub: "
            f"{type(error).__name__}: {first}"
        ) from None
    if weights and not (folder / "config.json").is_file():
        raise UsageError(f"the hub's {name} has no config.json: it is not a transformers model")
    return folder


def open_config(folder: str | Path, **changes: Any) -> PretrainedConfig:
    """The architecture's config in a local folder, with some fields changed.

    Raises UsageError where there is none or transformers has no such architecture, DataError where the
    file is damaged.
    """
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    file = Path(folder) / "config.json"
    values = read_object(file)
    if values is None:
        raise UsageError(
            f"{folder} is not a model folder: it has no config.json{_place_of_model(Path(folder))}"
        )
    model_type = str(values.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        code = (
            ", and Python code that comes with a model is never run" if "auto_map" in values else ""
        )
        raise UsageError(
            f"{file}: model_type is '{model_type}', which transformers {transformers.__version__} does "
            f"not have{code}; use a model of an architecture that it has"
        )
    try:
        with quietly():
            _check_sizes(file, values, CONFIG_MAPPING[model_type]())
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **changes
            )
    except DataError:
        raise
    except (
        Exception
    ) as error:  # each config class validates in its own way and raises what it likes
        raise DataError(f"{file} does not make a '{model_type}': {one_line(error)}") from None
    vars(config).pop("auto_map", None)  # it names Python files of that folder
    return config


def _check_sizes(file: Path, values: Mapping[str, Any], usual: PretrainedConfig) -> None:
    """Raise DataError for a size in a config.json that no model has; fields that are unknown are not read."""
    known = {field.name for field in fields(usual)} | usual.attribute_map.keys()
    for key in values:
        if key in known and (fault := fault_of_size(key, values[key], usual)):
            raise DataError(
                f"{file}: {key} is {values[key]}; {fault}: copy the file again from where the model is from"
            )


def open_tokenizer(folder: str | Path, *, as_class: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder; raises UsageError where there is no folder, DataError for damage.

    A ``tokenizer.json`` is followed as :func:`chronomask.model.tokenizer_file.follow_file` says;
    ``as_class``: whether it is left to transformers instead what its class takes of the file.
    """
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder with a tokenizer: it does not exist")
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if not as_class:
                tokenizer = follow_file(Path(folder), tokenizer)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        why = one_line(error)
        if "trust_remote_code" in why:
            why = "it is of a class that transformers does not have, and Python code that comes with a "
            why += "tokenizer is never run; save it with a class of transformers first"
        raise DataError(f"{folder} cannot be opened as a tokenizer: {why}") from None
    # Where there are no files, transformers makes a tokenizer that knows no word.
    names = ("tokenizer.json", *tokenizer.vocab_files_names.values())
    if (
        not tokenizer.vocab_files_names
    ):  # one of characters or bytes, as CANINE's, has no vocabulary
        names = (*names, "tokenizer_config.json")
    if not any((Path(folder) / name).is_file() for name in names):
        raise DataError(
            f"{folder} has no tokenizer (none of {', '.join(dict.fromkeys(names))}): save the model's own "
            "there too, with its save_pretrained"
        )
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def open_model(
    folder: str | Path,
    auto: str = "AutoModelForMaskedLM",
    *,
    new_head: bool = False,
    **changes: Any,
) -> PreTrainedModel:
    """The float32 model in a local folder, in training mode, on the host.

    ``auto``: the name of the transformers auto class to open it as; ``new_head``: whether parts
    outside of the backbone that the folder lacks are drawn from torch's generator; ``changes``: fields
    of the config to change, such as ``num_labels``.

    Raises UsageError for a folder without the model asked for, :class:`MissingHead` where only its head
    is not there, DataError for damaged files and for weights that do not fit the config.
    """
    import torch
    import transformers

    from chronomask.model.attention import implementation_for
    from chronomask.model.host import use_host_kernels
    from chronomask.model.modernbert import use_one_pass_gradients

    folder = Path(folder)
    config = open_config(folder, **changes)
    check_architecture(folder, config, auto)
    names = [name for file in weight_files(folder) for name in _names_in(file)]
    wrapped = sorted({found[0] for name in names if (found := _WRAPPED.search(name))})
    if wrapped:
        shown = " and ".join(f"'{prefix}'" for prefix in wrapped)
        logger.warning("%s: %s is taken out of the names of the weights", folder, shown)
    made = getattr(transformers, auto)
    try:
        with quietly():
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                skeleton = made.from_config(config, attn_implementation=implementation_for(config))
            check_memory(skeleton, f"the model that {folder}/config.json describes")
            model, info = made.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation=implementation_for(config),
                ignore_mismatched_sizes=True,  # told by name below
                output_loading_info=True,
                key_mapping={_WRAPPED.pattern: ""} if wrapped else None,
            )
    except UsageError:
        raise
    except Exception as error:  # architectures check themselves and raise what they like
        raise DataError(f"{folder} cannot be opened as a model: {one_line(error)}") from None
    _check_kinds(folder, model)
    _check_weights(folder, model, info, auto, new_head)
    # Loaded tensors are views into the mapped file, at any address. Matrix products round differently
    # at addresses that are not aligned, so a resumed run would not be bit for bit the one it resumes.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    use_one_pass_gradients(model)
    use_host_kernels(model)
    return model.train()


def check_architecture(
    name: str | Path, config: PretrainedConfig, auto: str = "AutoModelForMaskedLM"
) -> None:
    """Raise UsageError if transformers' auto class of that name has no model of this architecture, or if it
    is set to read every row in one direction.
    """
    import transformers

    from chronomask.model.attention import check_directions

    check_directions(config, name)
    if type(config) not in getattr(transformers, auto)._model_mapping:
        raise UsageError(
            f"{name} is of type '{config.model_type}', of which transformers has no model for "
            f"{auto.removeprefix('AutoModelFor')}: choose another model, or another task"
        )
    if auto == "AutoModel" and config.is_encoder_decoder:
        raise UsageError(
            f"{name} is of type '{config.model_type}', which is an encoder with a decoder: choose a model "
            "that is an encoder alone"
        )


def check_tokens(name: str | Path, config: PretrainedConfig, vocab_size: int) -> None:
    """Raise UsageError for a model in the folder ``name`` that lacks weights for some of so many tokens."""
    if (known := config.vocab_size) < vocab_size:
        raise UsageError(
            f"{name} has weights for {known:,} tokens, and its tokenizer has {vocab_size:,}: tokens were "
            "added to the tokenizer alone. Save a model that has rows for them, and name it instead: model = "
            f"transformers.AutoModelForMaskedLM.from_pretrained('{name}'); "
            f"model.resize_token_embeddings({vocab_size}); model.save_pretrained('mended'); "
            f"transformers.AutoTokenizer.from_pretrained('{name}').save_pretrained('mended')"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder by name; every weight is read from one of them.

    Raises UsageError where there is none, and where an adapter of PEFT lies beside them, which transformers
    takes into the model where PEFT is installed. Where ``model.safetensors`` is not among them, an index says
    which weight is in which file: DataError where it names another file or one that is missing.
    """
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"{folder} holds an adapter of PEFT beside a model: join them in Python with "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload() and save that in another folder, "
            "or move the adapter's files away to take the model without it"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(
            f"{folder} has no .safetensors weights; open it once with transformers and save it again "
            "(save_pretrained): other formats can run code when they are read"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        table = (read_object(index) or {}).get("weight_map")
        names = list(table.values()) if isinstance(table, dict) else None
        for name in [table] if names is None else [n for n in names if not _is_weight_file(n)]:
            raise DataError(
                f"{index} does not say in which .safetensors files beside it the weights are: 'weight_map' "
                f"has {shown(name)}; copy the model again, or save it again with save_pretrained"
            )
        for name in dict.fromkeys(names or ()):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing; copy the model again")
    return files


def _is_weight_file(name: object) -> bool:
    """Whether it names a .safetensors file in the same folder."""
    return is_file_name(name) and str(name).endswith(".safetensors")


def fault_of_architecture(error: BaseException) -> str | None:
    """What transformers' code of an architecture raised as it ran; None for an error from elsewhere."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    ours = [
        place
        for place, name in enumerate(names)
        if name.partition(".")[0] == "chronomask" and name not in _LAYERS
    ]
    theirs = names[ours[-1] + 1 :] if ours else names
    if not any(_MODELLING.match(name) for name in theirs):
        return None
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """The text of a library's error on one line; a KeyError says what it does not know."""
    text = " ".join(str(error).split())
    return f"{text} is not known" if isinstance(error, KeyError) else text or type(error).__name__


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from drawing bars and logging reports of its own between a run's lines."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _names_in(file: Path) -> list[str]:
    """Names of the weights in a file, whose header must fit its size."""
    try:
        file.open("rb").close()  # safetensors says of one that may not be read that it is not there
        with safe_open(file, framework="numpy") as weights:
            return list(weights.keys())
    except PermissionError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; {READABLE}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is damaged or was cut short ({error}); copy it again") from None


def _check_kinds(folder: Path, model: PreTrainedModel) -> None:
    """Refuse weights that are whole numbers or truth values, as a quantised model's are: they stand for other
    numbers. Buffers, such as the numbers of positions, may be whole.
    """
    endings = {
        name.rpartition(".")[2] for name, own in model.named_parameters() if own.is_floating_point()
    }
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118
                kind = str(weights.get_slice(name).get_dtype())
                if kind.startswith(_WHOLE) and name.rpartition(".")[2] in endings:
                    raise DataError(
                        f"{file}: weight '{name}' is stored as {kind}, as of a quantised model: save it with "
                        "floating-point weights (float32, float16 or bfloat16), or name the model that it "
                        "was made from"
                    )


def _check_weights(
    folder: Path, model: PreTrainedModel, info: Any, auto: str, new_head: bool
) -> None:
    """Refuse weights that do not fit the model, by name; other tasks' heads may be left over."""
    backbone = _Backbone(model)
    for name, stored, made in sorted(info["mismatched_keys"]):
        if not (new_head and name not in backbone):
            raise DataError(
                f"{folder}: weight '{name}' has shape {tuple(stored)}, and config.json makes it "
                f"{tuple(made)}: they are not of one model"
            )
    missing = sorted(info["missing_keys"])
    left_over = sorted(name for name in info["unexpected_keys"] if name in backbone)
    if inner := [name for name in missing if name in backbone]:
        bare = tuple(f".{name}" for name in map(backbone.inner_name, inner))
        others = sorted(name for name in info["unexpected_keys"] if name.endswith(bare))
        found = f"; it has {_listing(left_over or others)} instead" if left_over or others else ""
        raise DataError(f"{folder}: the weights lack {_listing(inner)}{found}")
    # Some heads read a part of the backbone alone: Funnel's classifiers have no decoder.
    if left_over and not backbone.has_all(left_over):
        raise DataError(
            f"{folder}: the weights hold {_listing(left_over)}, of which config.json knows nothing"
        )
    if missing and not new_head:
        raise MissingHead(
            f"{folder} has no {_task(auto)} head ({_listing(missing)} not among its weights)"
        )
    others = [name for name in info["unexpected_keys"] if name not in backbone]
    if others:
        logger.info("%s: not used: %s", folder, _listing(sorted(others)))


def _task(auto: str) -> str:
    task = auto.removeprefix("AutoModelFor")
    return {"MaskedLM": "masked-language-model", "AutoModel": "such"}.get(task, task)


class _Backbone:
    """The names of weights that belong to a model's backbone, its pooler left out: that is a head's."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._config = model.config
        self._prefix = f"{model.base_model_prefix}."
        self._children = {name for name, _ in model.base_model.named_children()}

    def __contains__(self, name: str) -> bool:
        inner = self.inner_name(name)
        first = inner.partition(".")[0]
        return first != "pooler" and (inner != name or first in self._children)

    def inner_name(self, name: str) -> str:
        """The name of a weight without the backbone's own."""
        return name.removeprefix(self._prefix)

    def has_all(self, names: Sequence[str]) -> bool:
        """Whether the architecture's whole backbone has weights of these names."""
        import torch
        from transformers import AutoModel

        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            whole = AutoModel.from_config(self._config).state_dict()
        return all(name.removeprefix(self._prefix) in whole for name in names)


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
