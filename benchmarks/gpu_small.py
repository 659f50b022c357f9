"""Figures of small models on a GPU: fine-tuning beside transformers' ``Trainer``, and many runs on one card.

A model of 4 × 256 keeps a large GPU busy for a fraction of the time: starting its kernels takes longer than
running them. What can help is to start many at once (CUDA graphs), or several runs side by side: in processes
whose kernels take turns, in processes that share the device (NVIDIA's MPS), or in threads with streams.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset

from benchmarks.gpu_work import ROOT, SMALL, TINY, Figures, Setting, of_training, settle
from benchmarks.sides import Work, bare_steps
from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.finetune import FineTuning, fine_tune

__all__ = [
    "SMALL_GRAPHS", "WAYS", "WAYS_OF_ONE", "of_finetuning", "of_many_runs", "of_threads",
]  # fmt: skip

SMALL_GRAPHS = of_training("small", "small_graphs", compile="graphs")
WAYS_OF_ONE = {
    "one_of_many": of_training("small", "one"),
    "one_of_many_graphs": of_training("small", "one", compile="graphs"),
}
"""What one of many runs does, by the name of its figure."""
WAYS = ("many_runs", "many_runs_graphs", "many_runs_mps")


def of_many_runs(way: str | None = None) -> Callable[[Setting], Figures]:
    """Tokens a second of eight small runs on one card together, each in a process of its own.

    ``way``: "graphs" records their passes as CUDA graphs; "mps" lets their kernels run side by side, where
    NVIDIA's daemon is installed.
    """
    name = "many_runs" if way is None else f"many_runs_{way}"
    of_one = "one_of_many_graphs" if way == "graphs" else "one_of_many"

    def measure(setting: Setting) -> Figures:
        if setting.toy and way is not None:
            return {f"{name}_left_out": "at toy size many_runs stands for all ways"}
        if way == "mps" and shutil.which("nvidia-cuda-mps-control") is None:
            return {f"{name}_left_out": "nvidia-cuda-mps-control is not installed"}
        command = [
            sys.executable, "-m", "benchmarks.gpu", "--figure", of_one,
            "--steps", str(setting.steps if setting.toy else 200),
            *(["--toy"] if setting.toy else []),
        ]  # fmt: skip
        with _mps() if way == "mps" else nullcontext(os.environ) as environment:
            children = [
                subprocess.Popen(
                    [*command, "--out", str(setting.folder("small").parent)],
                    cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment,
                )
                for _ in range(1 if setting.toy else 8)
            ]  # fmt: skip
            speeds = []
            for child in children:
                told = (json.loads(x) for x in child.communicate()[0].splitlines() if x[:1] == "[")
                speeds += [value for figure, value in told if figure == "one_tokens_per_second"]
        return {name: len(speeds), f"{name}_tokens_per_second": sum(speeds)}

    return measure


@contextmanager
def _mps() -> Iterator[dict[str, str]]:
    """NVIDIA's daemon of this process alone, and the environment in which processes find it."""
    with tempfile.TemporaryDirectory() as folder:
        places = {f"CUDA_MPS_{kind}_DIRECTORY": folder for kind in ("PIPE", "LOG")}
        environment = dict(os.environ) | places
        subprocess.run(["nvidia-cuda-mps-control", "-d"], env=environment, check=True)
        try:
            yield environment
        finally:
            subprocess.run(
                ["nvidia-cuda-mps-control"], input="quit\n", text=True, env=environment, check=False
            )


def of_threads(setting: Setting) -> Figures:
    """Tokens a second of small models in threads of one process, with a stream each, and of one model alone.

    Steps are bare, forward, backward and update on a batch masked beforehand, and not compiled.
    """
    work, data = setting.work("small"), setting.data("small")
    trains = [
        bare_steps(work, data, setting.folder("thread"), compile="never")
        for _ in range(2 if setting.toy else 8)
    ]
    count = setting.steps

    def train(one: Callable[[int], None]) -> None:
        own = torch.cuda.Stream() if work.device == "cuda" else None
        with torch.cuda.stream(own):  # None: no stream of its own
            for step in range(count):
                one(step)

    found = {}
    for name, chosen in (("alone", trains[:1]), ("together", trains)):
        for one in chosen:
            one(0)
        settle(work)
        began = time.perf_counter()
        with ThreadPoolExecutor(len(chosen)) as pool:
            list(pool.map(train, chosen))
        settle(work)
        seconds = time.perf_counter() - began
        found[f"threads_{name}_tokens_per_second"] = len(chosen) * count * work.tokens / seconds
    return found


def of_finetuning(task: str) -> Callable[[Setting], Figures]:
    """Examples a second of our fine-tuning, and over those of transformers' ``Trainer`` in its best setting.

    A ModernBERT of 4 × 256 with windows of 32, on "sst2" (phrases, one label) or "squad" (a question with its
    passage, one span): made-up tokens in lengths like those of the task.
    """

    def measure(setting: Setting) -> Figures:
        work = setting.work("small")
        batch_size, batches = (4, 2) if setting.toy else (32, 100)
        recipe = FineTuning(epochs=1, batch_size=batch_size, precision=work.precision)
        examples, targets = _made_up(task, work, batches * batch_size)
        on_device = [values.to(work.device) for values in targets.values()]

        def loss_of(output: Any, _: dict[str, Any], index: torch.Tensor) -> torch.Tensor:
            squad = task == "squad"
            logits = (output.start_logits, output.end_logits) if squad else (output.logits,)
            losses = [
                torch.nn.functional.cross_entropy(each.float(), target[index])
                for each, target in zip(logits, on_device, strict=True)
            ]
            return torch.stack(losses).mean()

        model, seconds = _model(task, setting, "chronomask_documents"), []
        for seed in range(2):  # the first epoch warms up; a loss that is not finite ends it
            settle(work)
            began = time.perf_counter()
            fine_tune(model, examples, loss_of, recipe, 1e-4, seed, label=task, progress=False)
            settle(work)
            seconds.append(time.perf_counter() - began)
        ours = len(examples) / seconds[1]
        found = {f"{task}_examples_per_second": ours}
        for how in ("eager", "compiled"):
            theirs = _trainer_speed(task, setting, examples, targets, recipe, how == "compiled")
            found[f"{task}_trainer_{how}_examples_per_second"] = theirs
        best = max(value for name, value in found.items() if "_trainer_" in name)
        return found | {f"{task}_vs_transformers": ours / best}

    return measure


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
    """When each epoch began and ended, the device's work included."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.times: list[float] = []

    def _note(self) -> None:
        settle(self._work)
        self.times.append(time.perf_counter())

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._note()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._note()


def _trainer_speed(
    task: str,
    setting: Setting,
    examples: Encoded,
    targets: dict[str, torch.Tensor],
    recipe: FineTuning,
    compiled: bool,
) -> float:
    """Examples a second of a ``Trainer`` in its second epoch.

    Batches are of like length and padded to their longest.
    """
    work, clock = setting.work("small"), _EpochClock(setting.work("small"))
    backend = ("eager" if setting.toy else "inductor") if compiled else None
    transformers.Trainer(
        model=_model(task, setting, "sdpa"),
        args=transformers.TrainingArguments(
            output_dir=str(setting.folder("trainer")),
            num_train_epochs=2,
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
    return len(examples) / (clock.times[3] - clock.times[2])
