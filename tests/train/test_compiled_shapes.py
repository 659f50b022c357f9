"""Compiled runs end where sizes change from step to step: warm-ups, growing ratios, run after run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from chronomask.data.order import BatchWarmUp, Sizes
from chronomask.errors import UsageError
from chronomask.model import head
from chronomask.recipes import find_recipe
from chronomask.train import loop, step
from chronomask.train import open as opening
from chronomask.train.config import RunConfig
from chronomask.train.log import RunLog
from chronomask.train.loop import pretrain
from chronomask.types import Rows
from tests.support.golden_runs import ROW_LENGTH, make_data
from tests.support.tiny_models import tiny_bert

pytestmark = [  # torch's own, while it looks at what is to be compiled
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
]

RECIPES = (
    "bert-base",
    "bert-large",
    "bert-small",
    "bert-tiny",
    "hour-en",
    "modernbert-base",
    "modernbert-tiny",
)
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """The backbone is compiled without code being made; collects the shapes that graphs were made of."""
    seen: set[tuple[int, ...]] = set()

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        ids = (x.shape for x in inputs if isinstance(x, torch.Tensor) and x.dtype == torch.int64)
        # Those of one row are tables of positions that models hold.
        seen.update(tuple(shape) for shape in ids if len(shape) == 2 and shape[0] > 1)
        return graph.forward

    monkeypatch.setattr(opening, "COMPILER", note)
    return seen


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def config_of(data: Path, **changes: Any) -> RunConfig:
    values = {
        "data": str(data),
        "model": tiny_bert(ROW_LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "device": "cpu",
        "threads": 1,
        "log_every": 1,
        "peak_flops": 1e12,
        "validation": {"every": 0, "rows": 8},
        "checkpoint": {"every": 0},
    }
    return RunConfig.of(values, **changes)


def test_more_than_sixteen_sizes_of_steps(
    data: Path, tmp_path: Path, shapes: set[tuple[int, ...]]
) -> None:
    """And the losses are those of the same run without compilation, to rounding."""
    growing = {"start_rows": 3, "steps": 20, "stages": 20}
    config = config_of(data, steps=21, rows_per_step=23, batch_warmup=growing, compile="always")
    sizes = Sizes(23, BatchWarmUp(**growing))
    assert len({sizes.rows_at(step) for step in range(21)}) > 16
    pretrain(config, tmp_path / "compiled", progress=False)
    assert len(shapes) <= 4
    pretrain(RunConfig.of(config, compile="never"), tmp_path / "eager", progress=False)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def test_more_than_sixteen_shapes_of_one_function_in_one_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head, which a moving ratio compiles again; here it is padded to more sizes than it is as a rule."""
    monkeypatch.setattr(head, "PADDED_SIZES", tuple(number / 24 for number in range(1, 25)))
    made: list[int] = []
    monkeypatch.setattr(opening, "COMPILER", lambda graph, _: made.append(1) or graph.forward)
    ratio = {"kind": "linear", "start": 0.8, "end": 0.02}
    config = config_of(data, steps=2, rows_per_step=8, compile="always")
    config = RunConfig.of(config, model={"overrides": SMALL}, masking={"ratio": ratio})
    pretrain(config, tmp_path / "run", progress=False)
    assert len(made) > 2 + 16  # the model under the head is compiled for at most two kinds of input


def test_a_ratio_that_moves_compiles_nothing_after_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head for all numbers of predictions is compiled before, and no loss depends on that."""
    ratio = {"kind": "linear", "start": 0.5, "end": 0.1}
    config = config_of(data, steps=8, rows_per_step=12, micro_batches=2, compile="always")
    config = RunConfig.of(config, model={"overrides": SMALL}, masking={"ratio": ratio})
    made: list[int] = []
    monkeypatch.setattr(opening, "COMPILER", lambda graph, _: made.append(1) or graph.forward)
    advance, by_step = RunLog.advance, []

    def note(self: RunLog, *arguments: Any) -> None:
        advance(self, *arguments)
        by_step.append(len(made))

    monkeypatch.setattr(RunLog, "advance", note)
    pretrain(config, tmp_path / "ahead", progress=False)
    assert by_step == [by_step[0]] * 8
    made.clear()
    by_step.clear()
    monkeypatch.setattr(loop, "compile_ahead", lambda *_: None)
    pretrain(config, tmp_path / "not", progress=False)
    assert by_step[-1] >= by_step[0] + 3
    assert losses(tmp_path / "ahead") == losses(tmp_path / "not")


def test_rows_whose_parts_differ_by_one(
    data: Path, tmp_path: Path, shapes: set[tuple[int, ...]]
) -> None:
    config = config_of(data, steps=3, rows_per_step=40, micro_batches=3, compile="always")
    config = RunConfig.of(config, masking={"ratio": {"kind": "cosine_decay", "base": 0.3}})
    pretrain(config, tmp_path / "run", progress=False)
    assert shapes == {(14, ROW_LENGTH)}


@pytest.mark.parametrize(("compiled", "said"), [("always", 1), ("auto", 0)])
def test_the_wait_for_a_compiler_is_announced(
    compiled: str,
    said: int,
    data: Path,
    tmp_path: Path,
    shapes: set[tuple[int, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of(data, steps=2, rows_per_step=4, compile=compiled, device="cpu")
    pretrain(config, tmp_path / "run", progress=True)
    assert capsys.readouterr().err.count("compiling the model for cpu before its first") == said


@pytest.mark.slow
def test_run_after_run_in_one_process(
    data: Path, tmp_path: Path, shapes: set[tuple[int, ...]]
) -> None:
    """As a study over batch sizes and widths makes them: more than torch's limit of 8."""
    for number in range(10):
        config = config_of(data, steps=1, rows_per_step=4 + number, compile="always")
        width = {"hidden_size": 16 + 8 * (number % 3), "num_attention_heads": 2}
        config = RunConfig.of(config, model={"overrides": width})
        pretrain(config, tmp_path / f"run-{number}", progress=False)
    assert len(shapes) > 8


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_sizes_of_every_recipe(
    recipe: str, data: Path, tmp_path: Path, shapes: set[tuple[int, ...]]
) -> None:
    """A step of each size that the recipe has, rows and widths scaled down."""
    values = RunConfig.load(find_recipe(recipe), [f"data={data}"])
    scale = max(1, values.rows_per_step // 48)
    warm_up = values.batch_warmup
    stages = 1 if warm_up is None else warm_up.stages
    changes: dict[str, Any] = {
        "model": {"overrides": SMALL},
        "rows_per_step": values.rows_per_step // scale,
        "micro_batches": min(values.micro_batches, values.rows_per_step // scale),
        "steps": stages + 2,
        "hours": None,
        "learning_rate": {"warmup_steps": 0},
        "compile": "always",
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "peak_flops": 1e12,
        "validation": {"every": 0, "rows": 8},
        "checkpoint": {"every": 0},
    }
    if warm_up is not None:
        start = max(1, warm_up.start_rows // scale)
        changes["batch_warmup"] = {"start_rows": start, "steps": stages, "stages": stages}
    pretrain(RunConfig.of(values, **changes), tmp_path / "run", progress=False)
    assert len(shapes) <= 4


def overwriting(graph: torch.fx.GraphModule, _: Any) -> Any:
    """Gives its outputs in the same memory at every call, as a CUDA graph does."""
    memory: dict[int, torch.Tensor] = {}

    def run(*inputs: Any) -> list[Any]:
        outputs = list(graph.forward(*inputs))
        for number, output in enumerate(outputs):
            if isinstance(output, torch.Tensor):
                own = memory.setdefault(number, torch.empty_like(output))
                outputs[number] = torch.empty(0, dtype=own.dtype).set_(
                    own.copy_(output).untyped_storage(), 0, own.shape, own.stride()
                )
        return outputs

    return make_boxed_func(run)


def test_nothing_that_a_graph_overwrites_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are those of the same run compiled without graphs; each micro-batch begins a graph's step."""
    config = config_of(data, steps=2, rows_per_step=12, micro_batches=3, compile="always")
    config = RunConfig.of(config, model={"overrides": SMALL})
    asked: list[bool] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        asked.append(inductor.triton.cudagraphs)
        compiler = overwriting if asked[-1] else lambda graph, _: make_boxed_func(graph.forward)
        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)(graph, inputs)

    begun: list[bool] = []
    copied: list[int] = []

    def count(parameters: list[torch.nn.Parameter]) -> None:
        copied.append(sum(parameter.grad is not None for parameter in parameters))
        take_out(parameters)

    take_out = step._take_out_of_graphs
    monkeypatch.setattr(step, "_take_out_of_graphs", count)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    monkeypatch.setattr(opening, "COMPILER", note)
    pretrain(config, tmp_path / "plain", progress=False)
    assert asked
    assert not any(asked)
    assert not begun
    assert not any(copied)
    asked.clear()
    copied.clear()
    pretrain(RunConfig.of(config, compile="graphs"), tmp_path / "graphs", progress=False)
    assert asked
    assert all(asked)
    assert len(begun) == 6
    # Of the last micro-batch nothing is copied: it is used up before a graph runs again.
    assert [number > 0 for number in copied] == [True, False, False] * 2
    assert losses(tmp_path / "graphs") == losses(tmp_path / "plain")
    assert not inductor.triton.cudagraphs
    with pytest.raises(UsageError, match="compile 'graphs' records passes of a whole model"):
        RunConfig.of(config, compile="graphs", sharding="fsdp2")


@pytest.mark.gpu
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_cuda_graphs_give_the_losses_without_them(
    data: Path, tmp_path: Path, micro_batches: int
) -> None:
    """Also of gradients summed over micro-batches, which graphs that overwrite them would make too small."""
    sizes: dict[str, Any] = {"rows_per_step": 12, "micro_batches": micro_batches}
    config = config_of(data, steps=12, device="cuda", **sizes)
    for how in ("always", "graphs"):
        pretrain(RunConfig.of(config, compile=how), tmp_path / how, progress=False)
    assert losses(tmp_path / "graphs") == pytest.approx(losses(tmp_path / "always"), rel=1e-4)


def test_rows_of_padding_are_no_rows() -> None:
    import numpy as np

    rows = Rows(
        np.full((2, 4), 7),
        np.zeros((2, 4), np.int32),
        np.ones((2, 4), np.uint8),
        np.arange(2),
        np.zeros(2, np.int64),
        np.array([0, 3, 4, 8], np.int32),
    )
    padded = rows.pad_to(4, 0)
    assert padded.input_ids[2:].tolist() == [[0] * 4] * 2
    assert (padded.word_id[2:] == -1).all()
    assert padded.cu_seqlens.tolist() == [0, 3, 4, 8, 12, 16]
    assert rows.pad_to(2, 0) is rows
