"""Figures of small models on a GPU: fine-tuning beside transformers' ``Trainer``, and many runs on one card.

A model of 4 × 256 keeps a large GPU busy for a fraction of the time: starting its kernels takes longer than
running them. What can help is to start many at once (CUDA graphs), or several runs side by side: in processes
whose kernels take turns, in processes that share the device (NVIDIA's MPS), or in threads with streams.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset

from benchmarks.gpu_apart import Told, command_of
from benchmarks.gpu_work import (
    BEGIN,
    MASKING,
    ROOT,
    SMALL,
    SO_FAR,
    TINY,
    Setting,
    Tell,
    at_toy_size,
    ready_file,
    settle,
)
from benchmarks.sides import Work, bare_steps, ours
from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.finetune import FineTuning, Telling, fine_tune
from chronomask.model.modernbert import use_one_pass_gradients

__all__ = [
    "ONES", "WAYS", "follow", "of_finetuning", "of_many_runs", "of_threads", "of_trainer_finetuning",
    "quit_mps", "speed_together",
]  # fmt: skip

WAYS = ("many_runs", "many_runs_graphs", "many_runs_mps")
DAEMON = "nvidia-cuda-mps-control"


def of_many_runs(way: str | None = None) -> Callable[[Setting], None]:
    """Tokens a second of eight small runs on one card together, each in a process of its own.

    They begin together, when all have warmed up; what counts is the time in which all of them train.
    ``way``: "graphs" records their passes as CUDA graphs; "mps" lets their kernels run side by side, where
    NVIDIA's daemon is installed. At toy size it is one run, and "graphs" has it in this process.
    """
    name = "many_runs" if way is None else f"many_runs_{way}"
    of_one = "one_of_many_graphs" if way == "graphs" else "one_of_many"

    def measure(setting: Setting) -> None:
        if way == "mps" and shutil.which(DAEMON) is None:
            return setting.tell(f"{name}_left_out", f"{DAEMON} is not installed")
        meeting = replace(setting, runs=setting.folder("meeting"), waits=True)
        meeting.runs.mkdir()
        tokens = setting.work("small").tokens
        if setting.toy and way == "graphs":
            (meeting.runs / BEGIN).touch()
            ends: list[float] = []
            ONES[of_one](replace(meeting, tell=lambda _, value: ends.append(value)))
            return _tell_together(setting.tell, name, [ends], tokens)
        tolds = [Told(meeting.runs / f"{each}.jsonl") for each in range(1 if setting.toy else 8)]
        with _mps(setting.runs) if way == "mps" else nullcontext(dict(os.environ)) as environment:
            # Eight processes that compile with a pool for every core each would wait for each other.
            environment["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
            children = [
                subprocess.Popen(
                    command_of(meeting, of_one, told), cwd=ROOT, env=environment,
                    stdin=subprocess.DEVNULL,
                )
                for told in tolds
            ]  # fmt: skip
            try:
                ends_of = follow(
                    children, tolds, meeting.runs, setting.wait_for_turn,
                    lambda so_far: _tell_together(setting.tell, name, so_far, tokens, SO_FAR),
                )  # fmt: skip
            finally:  # before the daemon, which waits for its clients
                for child in children:
                    child.kill()
                    child.wait()
        failed = sum(child.returncode != 0 for child in children)
        _tell_together(setting.tell, name, ends_of, tokens, SO_FAR if failed else "")
        if failed:
            raise RuntimeError(f"{failed} of {len(children)} runs failed")
        return None

    return measure


class Process(Protocol):
    """What is asked of a run's process."""

    pid: int

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        ...


def follow(
    children: Sequence[Process],
    tolds: Sequence[Told],
    meeting: Path,
    wait: Callable[[], None],
    hear: Callable[[list[list[float]]], None],
) -> list[list[float]]:
    """Let runs begin when all that live have warmed up; when the steps of each ended, once all are over.

    ``wait`` is called before they begin; ``hear`` is given what is known so far, after every hundred steps of
    all together.
    """
    ends_of: list[list[float]] = [[] for _ in children]
    heard, alive = 0, True
    while alive:
        alive = any(child.poll() is None for child in children)  # asked before the last is read
        for ends, told in zip(ends_of, tolds, strict=True):
            ends += [value for _, value in told.more()]
        living = [child for child in children if not child.poll()]  # or over, and well
        begun = (meeting / BEGIN).exists()
        if not begun and all(ready_file(meeting, child.pid).exists() for child in living):
            wait()
            (meeting / BEGIN).touch()
        if sum(map(len, ends_of)) >= heard + 100:
            heard = sum(map(len, ends_of))
            hear(ends_of)
        time.sleep(0.05)
    return ends_of


def _tell_together(
    tell: Tell, name: str, ends_of: Sequence[Sequence[float]], tokens: int, so_far: str = ""
) -> None:
    """Tell the speed of runs together, if any two ends of steps of each are known."""
    known = [ends for ends in ends_of if len(ends) > 1]
    speed = speed_together(known, tokens)
    if speed is not None:
        tell(f"{name}{so_far}", len(known))
        tell(f"{name}_tokens_per_second{so_far}", speed)


def speed_together(ends_of: Sequence[Sequence[float]], tokens: int) -> float | None:
    """Tokens a second of runs in the time in which all of them train; None where there is none.

    ``ends_of``: when the steps of each ended, in seconds of one clock; ``tokens``: of a step. A step that
    lies in that time in part counts in part.
    """
    if not ends_of:
        return None
    first, last = max(ends[0] for ends in ends_of), min(ends[-1] for ends in ends_of)
    if last <= first:
        return None
    steps = [np.interp((first, last), ends, np.arange(len(ends))) for ends in ends_of]
    return float(sum(end - begin for begin, end in steps)) * tokens / (last - first)


def _of_one(**changes: Any) -> Callable[[Setting], None]:
    """One of many runs: it warms up, waits for the others, and tells when steps end.

    All have one folder for runs, where each says that it is ready and finds when to begin.
    """

    def measure(setting: Setting) -> None:
        work, steps = setting.work("small"), setting.steps_or(240)
        warm, done = steps // 4, 0

        def after_step() -> None:
            nonlocal done
            done += 1
            if done == warm:
                setting.wait_for_turn()
            elif done > warm:
                setting.tell("end", time.monotonic())  # one clock for all processes

        with at_toy_size(setting):
            ours(
                work, setting.data("small"), setting.folder("run"), steps, masking=MASKING,
                log_every=1, loader_workers=2, after_step=after_step, **changes,
            )  # fmt: skip

    return measure


ONES = {"one_of_many": _of_one(), "one_of_many_graphs": _of_one(compile="graphs")}
"""What one of many runs does, by the name of its figure."""


@contextmanager
def _mps(runs: Path) -> Iterator[dict[str, str]]:
    """NVIDIA's daemon for one figure, and the environment in which processes find it."""
    (runs / "mps").mkdir()
    environment = _environment_of_mps(runs)
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run([DAEMON, "-d"], env=environment, check=True, **quiet)
    try:
        yield dict(environment)
    finally:
        quit_mps(runs)


def _environment_of_mps(runs: Path) -> dict[str, str]:
    places = {f"CUDA_MPS_{kind}_DIRECTORY": str(runs / "mps") for kind in ("PIPE", "LOG")}
    return dict(os.environ) | places


def quit_mps(runs: Path) -> None:
    """End the daemon that a figure started, if it did and could not end it itself."""
    folder = runs / "mps"
    if not folder.exists():
        return
    try:
        subprocess.run(
            [DAEMON], input=b"quit\n", env=_environment_of_mps(runs), check=False, timeout=20,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        with suppress(OSError, ValueError):
            os.kill(int((folder / f"{DAEMON}.pid").read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def of_threads(setting: Setting) -> None:
    """Tokens a second of small models in threads of one process, with a stream each, and of one model alone.

    Steps are bare, forward, backward and update on a batch masked beforehand, and not compiled.
    """
    work, data = setting.work("small"), setting.data("small")
    trains = [
        bare_steps(work, data, setting.folder("thread"), compile="never")
        for _ in range(2 if setting.toy else 8)
    ]
    count = setting.steps_or(20)
    for one in trains:
        one(0)
    settle(work)
    setting.wait_for_turn()

    def train(one: Callable[[int], None]) -> None:
        own = torch.cuda.Stream() if work.device == "cuda" else None
        with torch.cuda.stream(own):  # None: no stream of its own
            for step in range(count):
                one(step)

    for name, chosen in (("alone", trains[:1]), ("together", trains)):
        for one in chosen:
            one(0)
        settle(work)
        began = time.perf_counter()
        with ThreadPoolExecutor(len(chosen)) as pool:
            list(pool.map(train, chosen))
        settle(work)
        seconds = time.perf_counter() - began
        speed = len(chosen) * count * work.tokens / seconds
        setting.tell(f"threads_{name}_tokens_per_second", speed)


def of_finetuning(task: str) -> Callable[[Setting], None]:
    """Examples a second of our fine-tuning.

    A ModernBERT of 4 × 256 with windows of 32, on "sst2" (phrases, one label) or "squad" (a question with its
    passage, one span): made-up tokens in lengths like those of the task. It is the speed of the second epoch,
    since what the first one compiles or records serves all that follow.
    """

    def measure(setting: Setting) -> None:
        work = setting.work("small")
        recipe, examples, targets = _task(task, setting)
        on_device = [values.to(work.device) for values in targets.values()]

        def loss_of(output: Any, _: dict[str, Any], index: torch.Tensor) -> torch.Tensor:
            squad = task == "squad"
            logits = (output.start_logits, output.end_logits) if squad else (output.logits,)
            losses = [
                torch.nn.functional.cross_entropy(each.float(), target[index])
                for each, target in zip(logits, on_device, strict=True)
            ]
            return torch.stack(losses).mean()

        def after_epoch(epoch: int) -> bool:
            settle(work)
            ends.append(time.perf_counter())
            so_far = SO_FAR if epoch == 1 else ""  # the first epoch warms up, and records
            setting.tell(
                f"{task}_examples_per_second{so_far}", len(examples) / (ends[-1] - ends[-2])
            )
            if epoch == 1:
                setting.wait_for_turn()
                ends.append(time.perf_counter())
            return False

        model = _model(task, setting, "chronomask_documents")
        settle(work)
        ends = [time.perf_counter()]
        with at_toy_size(setting):  # a loss that is not finite ends it
            fine_tune(
                model, examples, loss_of, recipe, 1e-4, 0, telling=Telling(task, task),
                stops_after=after_epoch,
            )  # fmt: skip

    return measure


def _task(task: str, setting: Setting) -> tuple[FineTuning, Encoded, dict[str, torch.Tensor]]:
    """How it is fine-tuned, its examples and their targets."""
    work = setting.work("small")
    batch_size, batches = (4, 2) if setting.toy else (32, 100)
    recipe = FineTuning(epochs=2, batch_size=batch_size, precision=work.precision)
    return recipe, *_made_up(task, work, batches * batch_size)


def _made_up(task: str, work: Work, number: int) -> tuple[Encoded, dict[str, torch.Tensor]]:
    """Examples, and what a model computes its loss from, int64 [N] by keyword."""
    random = np.random.default_rng(0)
    longest = min(384, work.row_length if work.device == "cpu" else 384)
    if task == "sst2":
        lengths = 2 + random.gamma(1.4, 11 / 1.4, number)
    else:
        lengths = 12 + random.lognormal(np.log(140), 0.42, number)
    lengths = np.clip(lengths, 4, longest).astype(np.int64)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    ids = random.integers(5, work.vocabulary, bounds[-1]).astype(np.int32)
    if task == "sst2":
        targets = {"labels": ids[bounds[:-1]] % 2}
    else:
        targets = {name: random.integers(lengths) for name in ("start_positions", "end_positions")}
    as_tensors = {name: torch.from_numpy(each.astype(np.int64)) for name, each in targets.items()}
    return Encoded(ids, None, bounds, 0), as_tensors


def _model(task: str, setting: Setting, attention: str) -> Any:
    """The task's model on the device, always with the same weights."""
    work = setting.work("small")
    sizes = TINY | {"local_attention": 8} if setting.toy else SMALL | {"local_attention": 32}
    config = transformers.AutoConfig.for_model(
        "modernbert", vocab_size=work.vocabulary, num_labels=2, pad_token_id=0, **sizes
    )
    heads = {
        "sst2": transformers.AutoModelForSequenceClassification,
        "squad": transformers.AutoModelForQuestionAnswering,
    }
    torch.manual_seed(0)
    model = heads[task].from_config(config, attn_implementation=attention)
    use_one_pass_gradients(
        model
    )  # as models are opened, and nothing where the attention is not ours
    return model.to(work.device).train()


class _Labelled(Dataset[dict[str, Any]]):
    """Examples as the ``Trainer`` takes them."""

    def __init__(self, examples: Encoded, targets: dict[str, torch.Tensor]) -> None:
        self._parts = np.split(examples.ids.astype(np.int64), examples.bounds[1:-1])
        self._targets = targets

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        own = {name: values[index] for name, values in self._targets.items()}
        return {"input_ids": torch.from_numpy(self._parts[index]), **own}


def _pad(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest example."""
    ids = [example.pop("input_ids") for example in examples]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    batch = {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
    return batch | {"input_ids": padded, "attention_mask": (padded != 0).long()}


class _EpochClock(transformers.TrainerCallback):
    """When each epoch began and ended, the device's work included. It waits for its turn after the first."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.times: list[float] = []

    def _note(self) -> None:
        settle(self._setting.work("small"))
        self.times.append(time.perf_counter())

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._note()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._note()
        if len(self.times) == 2:
            self._setting.wait_for_turn()


def of_trainer_finetuning(task: str, compiled: bool) -> Callable[[Setting], None]:
    """Examples a second of a ``Trainer`` that fine-tunes as :func:`of_finetuning` does.

    Batches are of like length and padded to their longest.
    """

    def measure(setting: Setting) -> None:
        work, clock = setting.work("small"), _EpochClock(setting)
        recipe, examples, targets = _task(task, setting)
        backend = ("eager" if setting.toy else "inductor") if compiled else None
        transformers.Trainer(
            model=_model(task, setting, "sdpa"),
            args=transformers.TrainingArguments(
                output_dir=str(setting.folder("trainer")),
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=recipe.batch_size,
                learning_rate=1e-4,
                optim="adamw_torch_fused",
                train_sampling_strategy="group_by_length",
                use_cpu=work.device == "cpu",
                bf16=work.precision == "bf16",
                torch_compile=compiled,
                torch_compile_backend=backend,
                disable_tqdm=True,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=_Labelled(examples, targets),
            data_collator=_pad,
            callbacks=[clock],
        ).train()
        name = f"{task}_trainer_{'compiled' if compiled else 'eager'}_examples_per_second"
        setting.tell(name, len(examples) / (clock.times[3] - clock.times[2]))

    return measure
