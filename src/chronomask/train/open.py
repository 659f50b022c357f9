"""A run opened, in its folder.

``open_run`` refuses what cannot be before any work, builds the parts of a run, and, on resume, fills them
from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.data.entropy import measure_entropy
from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.mixture import MixedData, open_data
from chronomask.data.order import BatchWarmUp, LengthWarmUp
from chronomask.errors import DataError, RunError, UsageError, amount, in_words
from chronomask.masking.masker import Masker, Vocabulary, fixed_masker
from chronomask.model.attention import attention_dropout, head_width
from chronomask.model.build import build_model, checkpoint_activations
from chronomask.model.device import (
    Facts,
    data_sheet_flops,
    gpu_out_of_reach,
    peak_flops,
    precision_on,
    slow_on_host,
    slow_paths,
)
from chronomask.model.documents import DOCUMENTS_ATTENTION
from chronomask.model.export import weights_sha256
from chronomask.model.flash import activate_fastest, case_of
from chronomask.model.head import compile_backbone, logits_at
from chronomask.model.late_masks import widths
from chronomask.model.open import open_model, open_tokenizer
from chronomask.model.trial import settle
from chronomask.runs.layout import STATE, RunFolder
from chronomask.runs.rules import (
    has_padding,
    mean_labels,
    refuse_unsuited,
    unknown_before,
)
from chronomask.storage import read_object, write_json, write_text
from chronomask.text_files import read_text
from chronomask.train import checkpoint
from chronomask.train.agreement import refuse_unlike
from chronomask.train.averaging import Average
from chronomask.train.checkpoint import Checkpoint
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World, refuse_layerdrop
from chronomask.train.foresight import Foresight
from chronomask.train.forward import Forward, entering, room_for_documents
from chronomask.train.log import environment
from chronomask.train.loggers import check_loggers
from chronomask.train.low_precision import WorkingCopy
from chronomask.train.run import Run
from chronomask.train.saving import Saver
from chronomask.train.sharding import Sharded
from chronomask.train.state import State
from chronomask.train.validation import expect_no_response, warn_of_few, warn_of_other_rows

__all__ = ["compiles", "open_run"]

logger = logging.getLogger(__name__)

COMPILER = "inductor"
"""Backend of ``torch.compile``."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What a run begins from: a checkpoint of its own, one of another run, or nothing."""

    config: RunConfig
    """in force: a run that goes on keeps what may not be changed any more"""
    saved: Checkpoint | None
    """its own newest one, to go on from"""
    origin: Checkpoint | None
    """that of the run that is branched from"""
    logged_every: int | None
    """steps between logged lines until now, where the run goes on"""


def open_run(
    config: RunConfig, folder: RunFolder, world: World, *, resume: bool
) -> tuple[Run, State]:
    """The run in ``folder``, new or resumed; raises UsageError, DataError or RunError."""
    config = config.at(folder)
    folder.check_free(resume)
    check_loggers(config.loggers)
    data = open_data(config.data)
    refuse_unsuited(config, data)
    if config.length_warmup is not None:
        config.length_warmup.pieces_at(0, data.row_length)  # refuses lengths that cannot be
    labels = None
    if config.learning_rate.follow_labels is not None:
        labels = mean_labels(config, data)
        config.learning_rate.refuse_no_labels(labels)
    tokenizer = open_tokenizer(data.tokenizer_path)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    beginning = _find_beginning(config, folder, data, resume=resume)
    config = beginning.config
    model, initial_weights = _open_model(beginning, data, tokenizer, world)
    forward, working_copy, sharded = _prepare_computing(model, config, data, world)
    state = _first_state(beginning, data, world)
    run = Run(
        config=config,
        folder=folder,
        data=data,
        tokenizer=tokenizer,
        model=model,
        forward=forward,
        optimiser=config.optimiser.build(model),
        masker=Masker(config.masking, vocabulary, data.class_names, config.seed),
        validation_masker=fixed_masker(vocabulary),
        loader=RowLoader(
            data.split("train"),
            seed=config.seed,
            rows_per_step=config.sizes,
            rank=world.rank,
            world_size=world.size,
            num_workers=config.loader_workers,
            start_step=state.step,
            stop_step=config.steps,
            first_row=state.first_row,
        ),
        saver=Saver(folder.checkpoints, model, tokenizer, config.checkpoint.keep),
        outliers=config.outliers.begin(),
        mean_labels=labels,
        average=None if config.averaging is None else Average(config.averaging, model),
        working_copy=working_copy,
        sharded=sharded,
        initial_weights_sha256=initial_weights,
        first_step=state.first_step,
        logged_every=beginning.logged_every,
    )
    if ahead := config.masking.content.look_ahead:
        run.foresight = Foresight(config, ahead, run.forward, run.loader, vocabulary)
    if world.is_first:
        run.peak_flops = config.peak_flops or peak_flops(world.device, config.precision)
        run.data_sheet_flops = data_sheet_flops(world.device, config.precision)
    saved, origin = beginning.saved, beginning.origin
    if saved is not None:
        _restore(run, saved)
        run.finished = folder.read_summary() if state.step >= config.steps else None
    elif origin is not None:
        origin.load_optimiser(run.optimiser, model)
        _take_over(run, origin)
    weights = str(initial_weights if saved is None else saved.sha256)
    # Nobody reads any more then: from here on the first process may write.
    refuse_unlike(world, config, data.fingerprint, state.step, weights, forward.precision)
    with world.together():
        if world.is_first and run.finished is None:
            _begin_folder(run, state, origin, resumed=saved is not None)
            _warn_of_settings(run, compiles(config, world.device), world.size)
    return run, state


def _find_beginning(
    config: RunConfig, folder: RunFolder, data: PreparedData | MixedData, *, resume: bool
) -> _Beginning:
    """What a run of ``config`` begins from; raises UsageError and DataError where it cannot go on."""
    saved = checkpoint.latest(folder.checkpoints) if resume else None
    held_out = data.split("held_out").num_rows
    if saved is not None:
        before, config = checkpoint.check_same_run(saved, config, data.fingerprint)
        warn_of_other_rows(before.validation, config.validation, held_out)
        return _Beginning(config, saved, None, before.log_every)
    if resume:
        if folder.summary.is_file():
            raise UsageError(
                f"{folder.path} has done all its steps, and its checkpoints are gone: nothing can go on; "
                "give another output folder to train it again"
            )
        logger.warning("%s holds no checkpoint to resume: starting at step 0", folder.path)
    expect_no_response(
        config, held_out
    )  # refused of a new run alone: another cannot be changed any more
    return _Beginning(config, None, checkpoint.branch_point(config), None)


def _open_model(
    beginning: _Beginning,
    data: PreparedData | MixedData,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
) -> tuple[PreTrainedModel, str | None]:
    """The model on its device, tried on rows as the data have them; the hash of new weights, else None."""
    config, saved, origin = beginning.config, beginning.saved, beginning.origin
    causal = config.objective.has_causal_rows
    initial_weights = None
    if saved is not None:
        model = open_model(saved.model_path)
    else:
        model = build_model(
            checkpoint.model_of(config, origin),
            tokenizer,
            row_length=data.row_length,
            seed=config.seed,
            attention=config.attention,
            causal=causal,
            branched=origin is not None,
        )
        initial_weights = weights_sha256(model)
    refuse_layerdrop(model.config, world.size)
    settle(
        model,
        tokenizer,
        config.row_lengths(data.row_length),
        attention=config.attention,
        padded=has_padding(data),
        causal=causal,
    )
    entering(config.late_masks, model)  # refuses a model whose layers masks cannot enter late
    model.to(world.device)  # pyright: ignore[reportArgumentType]
    if config.activation_checkpointing:
        checkpoint_activations(model)
    return model, initial_weights


def _prepare_computing(
    model: PreTrainedModel, config: RunConfig, data: PreparedData | MixedData, world: World
) -> tuple[Forward, WorkingCopy | None, Sharded | None]:
    """How the model computes, compiled where it is to be; its bfloat16 weights and its shards, if any."""
    compiled = compiles(config, world.device)
    rows_here = -(-config.rows_per_step // world.size)
    micro_rows = -(-rows_here // min(config.micro_batches, rows_here))
    documents = None
    if compiled or world.device.type == "cuda":
        documents = room_for_documents(data.split("train"), micro_rows, data.manifest.pad_token_id)
    _use_fastest_attention(model, world.device, config, data.row_length, documents or 0)
    precision = precision_on(world.device, config.precision)
    working_copy = WorkingCopy(model) if config.bf16_weights and precision == "bf16" else None
    computing = model if working_copy is None else working_copy.model
    sharding = config.sharding == "fsdp2" and world.size > 1
    if compiled and not sharding:
        compile_backbone(computing, COMPILER)
    sharded = Sharded(model, world, compiled) if sharding else None
    forward = Forward(
        computing,
        world.device,
        precision,
        config.attention,
        data.manifest.pad_token_id,
        COMPILER if compiled and not sharding else None,
        micro_rows * data.row_length if compiled else None,
        documents if compiled else None,
        sharded or logits_at,
        entering(config.late_masks, model),
    )
    return forward, working_copy, sharded


def _first_state(beginning: _Beginning, data: PreparedData | MixedData, world: World) -> State:
    """Where training stands: as the run's checkpoint says, behind the rows that a branch saw, or at 0."""
    config, saved, origin = beginning.config, beginning.saved, beginning.origin
    if saved is not None:
        try:
            return State.from_checkpoint(saved.state, saved.content())
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{saved.path / STATE} is not as this version writes it ({in_words(error)}): resume with the "
                "version that wrote it, or put the file back as it was"
            ) from None
    state = State.start(len(data.class_names))
    if origin is None:
        return state
    state.first_step = origin.first_step + origin.step
    if origin.state["data_fingerprint"] == data.fingerprint:
        state.first_row = origin.state.get("first_row", 0) + origin.state["rows_seen"]
        if world.is_first and (before := checkpoint.config_of(origin).seed) != config.seed:
            logger.warning(
                "the run that is branched from has seed %s and this one %s, so its rows come in another "
                "order: it meets rows again that the run had seen; with seed=%s it begins with new ones",
                before, config.seed, before,
            )  # fmt: skip
    return state


def _restore(run: Run, saved: Checkpoint) -> None:
    """Fill the parts of a run from its own checkpoint."""
    saved.load_optimiser(run.optimiser, run.model)
    tensors = saved.content()
    run.masker.load_state_dict(tensors)
    run.outliers.load_state_dict(tensors)
    if run.foresight is not None:
        run.foresight.load_state_dict(tensors)
    if run.average is not None:
        averaged = saved.averaged_path
        run.average.load(tensors, None if averaged is None else open_model(averaged))


def _take_over(run: Run, origin: Checkpoint) -> None:
    """Let a branch begin with what masking and outliers had learned; what is of another kind begins anew."""
    tensors = origin.content()
    anew = {f"masking.{name}": why for name, why in run.masker.continue_from(tensors).items()}
    try:
        run.outliers.load_state_dict(tensors)
    except DataError as error:
        anew["outliers"] = error
    for name, why in anew.items():
        logger.warning("%s begins anew: %s", name, why)


def _use_fastest_attention(
    model: PreTrainedModel,
    device: torch.device,
    config: RunConfig,
    row_length: int,
    documents: int,
) -> None:
    """On CUDA in bfloat16: kernels of an installed package where they are right for this model.

    They are tried on batches like those of the run, of few documents and of ``documents``. None of them knows
    attention dropout.
    """
    bf16 = precision_on(device, config.precision) == "bf16"
    if device.type != "cuda" or not bf16 or attention_dropout(model.config)[1]:
        return
    lengths = {row_length}
    if config.length_warmup is not None:
        most = config.length_warmup.pieces_at(0, row_length)
        lengths |= {row_length >> n for n in range(most.bit_length())}
    if config.late_masks is not None:
        lengths |= {width for length in lengths for width in widths(length)}
    batches = [(length, number) for length in sorted(lengths) for number in (0, documents)]
    case = case_of(model, config.objective.has_causal_rows, batches)
    name = None if case is None else activate_fastest(case, device)
    if name is not None:
        logger.info("attention runs with %s", name)


def _warn_of_settings(run: Run, compiled: bool, processes: int) -> None:
    """Say which settings do less than they seem to, and what is slower than it need be."""
    config, masks_enter = run.config, run.forward.masks_enter
    warn_of_few(run.validation_masker, run.data.split("held_out"), config.validation)
    if config.learning_rate.warmup_steps >= config.steps:
        logger.warning(
            "learning_rate.warmup_steps is %s and the run has %s: the rate rises to the last of "
            "them and never falls; give fewer, such as learning_rate.warmup_steps=%s",
            f"{config.learning_rate.warmup_steps:,}", amount(config.steps, "steps"), config.steps // 10,
        )  # fmt: skip
    for name in ("batch_warmup", "length_warmup"):
        warm_up: BatchWarmUp | LengthWarmUp | None = getattr(config, name)
        if warm_up is not None and warm_up.steps >= config.steps:
            logger.warning(
                "%s.steps is %s and the run has %s: it is over before %s; give fewer, such as %s.steps=%s",
                name, f"{warm_up.steps:,}", amount(config.steps, "steps"), warm_up.at_its_end, name,
                max(1, config.steps // 10),
            )  # fmt: skip
    if run.begins and (why := expect_no_response(config, run.data.split("held_out").num_rows)):
        logger.warning("%s", why)
    if run.mean_labels is not None and (why := unknown_before(config)):
        logger.warning(
            "learning_rate.follow_labels goes by the mean number of labels that the config asks for, and "
            "that of this run may be another: %s",
            why,
        )
    if masks_enter is not None and (layer := masks_enter(1.0)):
        logger.warning(
            "late_masks: to the end of the run masked tokens enter at layer %s, and the model that is "
            "validated and saved reads them from layer 0 on, as any of its kind does: let "
            "late_masks.layer be a schedule that ends at 0",
            layer,
        )
    if config.bf16_weights and precision_on(run.forward.device, config.precision) == "fp32":
        logger.warning("bf16_weights does nothing here: this device computes the run in float32")
    if config.device == "auto" and (why := gpu_out_of_reach()) is not None:
        logger.warning("%s", why)
    for why in _slow_paths(run, compiled, processes):
        logger.warning("slower than it need be: %s", why)


def _slow_paths(run: Run, compiled: bool, processes: int) -> list[str]:
    """Why the run is slower on its CUDA device or its processor than it need be; nothing elsewhere."""
    forward = run.forward
    in_force = precision_on(forward.device, forward.precision)
    if forward.device.type != "cuda":
        return slow_on_host(in_force) if forward.device.type == "cpu" else []
    key, dropout = attention_dropout(forward.model.config)
    new = run.config.model.kind == "config"
    facts = Facts(
        model_type=forward.model.config.model_type,
        precision=in_force,
        computes_bf16=precision_on(forward.device, "auto") == "bf16",
        compiled=compiled,
        attention_dropout=dropout,
        dropout_key=f"model.overrides.{key}" if new else None,
        named_attention=forward.model.config._attn_implementation == DOCUMENTS_ATTENTION,
        head_width=head_width(forward.model.config),
        vocab_size=forward.model.config.vocab_size,
        sets_sizes=new,
        devices=torch.cuda.device_count() if processes == 1 else 1,
    )
    return slow_paths(facts)


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Whether the model is compiled on this device."""
    return config.compile in ("always", "graphs") or (
        config.compile == "auto" and device.type == "cuda"
    )


def _begin_folder(run: Run, state: State, origin: Checkpoint | None, *, resumed: bool) -> None:
    """Write what a run folder holds from its beginning; note a resume."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    checkpoint.tidy(run.folder.checkpoints, state.step, run.config.checkpoint.keep)
    write_text(run.folder.config, run.config.to_yaml())
    here = environment(run.forward.device) | {"precision": run.forward.precision}
    if resumed:
        before = read_object(run.folder.environment) or {}
        began, processes = before.get("precision"), before.get("world_size")
        if began is not None and began != run.forward.precision:
            logger.warning("the run began in %s and continues in %s", began, run.forward.precision)
        by_batch = run.config.masking.budget == "batch"
        if by_batch and processes is not None and processes != here["world_size"]:
            logger.warning(
                "the number of processes was %s and is %s: with masking.budget 'batch' other tokens are "
                "masked from here on than if the run had not stopped",
                processes, here["world_size"],
            )  # fmt: skip
        path = run.folder.resumes
        lines = read_text(path) if path.is_file() else ""
        write_text(path, lines + json.dumps({"from_step": state.step, **here}) + "\n")
    else:
        here["data_fingerprint"] = run.data.fingerprint
        if origin is not None:
            here["branch"] = {"checkpoint": str(origin.path.resolve()), "step": origin.step}
        here["data"] = run.folder.describe_places(run.config.data_paths)
        here["initial_weights_sha256"] = run.initial_weights_sha256
        if (entropy := measure_entropy(run.data)) is not None:
            here["entropy"] = asdict(entropy)
        write_json(run.folder.environment, here)
