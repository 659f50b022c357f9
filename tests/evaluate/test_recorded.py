"""Steps that are recorded and replayed train as others do, and nothing is lost where they cannot be."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from chronomask.data.folder import PreparedData
from chronomask.evaluate import recorded
from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.finetune import FineTuning, Telling, fine_tune
from chronomask.evaluate.finetuned_task import FineTunedTask
from chronomask.evaluate.heads import Logits, run_headed
from chronomask.evaluate.recorded import RecordedSteps, padded_length, recorder_on
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.tasks import REGISTRY, make_task
from chronomask.model.documents import DOCUMENTS_ATTENTION
from chronomask.model.modernbert import use_one_pass_gradients
from tests.support.task_files import write_task_files
from tests.support.tiny_models import SIZES, sizes

HEADS = {
    "phrases": transformers.AutoModelForSequenceClassification,
    "spans": transformers.AutoModelForQuestionAnswering,
}
CPU = torch.device("cpu")


class Rerun:
    """In place of a CUDA graph: keeps a step, to run it again on what lies in its place by then."""

    def __init__(self, most: int = 1000) -> None:
        self.recorded, self.asked, self._most = 0, 0, most

    def open(self) -> Any:
        return nullcontext()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.asked += 1
        if self.recorded == self._most:
            try:
                raise RuntimeError("no graph of this\nand further lines")
            finally:
                torch.zeros(1).view(2)  # what ends a recording fails too, then
        self.recorded += 1
        return run


def examples_of(number: int, longest: int) -> Encoded:
    random = np.random.default_rng(3)
    lengths = np.append(random.integers(3, longest, number - 1), longest)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    ids = random.integers(5, 90, bounds[-1]).astype(np.int32)
    return Encoded(ids, None, bounds, pad_token_id=0)


EXAMPLES = examples_of(70, 60)
RECIPE = FineTuning(epochs=3, batch_size=8, weight_decay=0.1, max_gradient_norm=0.5)


def model_of(task: str, model_type: str, dropout: float = 0.0) -> Any:
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout")
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=96, num_labels=2, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        bos_token_id=1, eos_token_id=2, **(SIZES | sizes(model_type)), **dict.fromkeys(names, dropout),
    )  # fmt: skip
    torch.manual_seed(0)
    model = HEADS[task].from_config(config, attn_implementation=DOCUMENTS_ATTENTION)
    use_one_pass_gradients(model)
    return model


def loss_on(
    task: str, device: torch.device, losses: list[float], syncs: bool = False
) -> Callable[..., Any]:
    lengths = EXAMPLES.lengths
    first = torch.from_numpy(EXAMPLES.ids[EXAMPLES.bounds[:-1]] % 2).long().to(device)
    ends = [torch.from_numpy(lengths // k - 1).to(device) for k in (3, 1)]

    def loss_of(output: Any, inputs: Any, index: torch.Tensor) -> torch.Tensor:
        cross_entropy = torch.nn.functional.cross_entropy
        if syncs and torch.cuda.is_current_stream_capturing():
            index.max().item()
        if task == "phrases":
            loss = cross_entropy(output.logits.float(), first[index])
        else:
            loss = torch.zeros((), device=device)
            for logits, target in zip((output.start_logits, output.end_logits), ends, strict=True):
                if "attention_mask" in inputs:
                    logits = logits.masked_fill(inputs["attention_mask"] == 0, -torch.inf)
                loss = loss + cross_entropy(logits.float(), target[index])
        if device.type == "cpu":
            losses.append(float(loss.detach()))
        return loss

    return loss_of


def train(model: Any, task: str, recipe: FineTuning = RECIPE, syncs: bool = False) -> list[float]:
    losses: list[float] = []
    loss_of = loss_on(task, model.device, losses, syncs)
    torch.manual_seed(7)
    fine_tune(model, EXAMPLES, loss_of, recipe, 3e-3, 1, telling=Telling("tiny", "tiny"))
    return losses


def use(monkeypatch: pytest.MonkeyPatch, recorder: Any) -> None:
    monkeypatch.setattr(recorded, "recorder_on", lambda device: recorder)


def distance(one: Any, other: Any) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(float((a - b).detach().double().square().sum()) for a, b in pairs) ** 0.5


def test_a_batch_is_padded_to_one_of_few_lengths() -> None:
    found = [padded_length(length, 10_000) for length in range(1, 1025)]
    assert all(0 <= f - n <= max(15, n / 4) for n, f in enumerate(found, 1))
    assert found == sorted(found)
    counts = {most: len(set(found[:most])) for most in (128, 384, 1024)}
    assert counts == {128: 8, 384: 14, 1024: 20}
    assert (
        padded_length(60, 61) == 61
    )  # never to more than the longest row, for which there are positions
    assert recorder_on(CPU) is None


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("task", HEADS)
def test_replayed_steps_lose_and_learn_what_others_do(
    monkeypatch: pytest.MonkeyPatch, task: str, model_type: str
) -> None:
    first, expected, found = (model_of(task, model_type).double() for _ in range(3))
    eager = train(expected, task)
    use(monkeypatch, recorder := Rerun())
    replayed = train(found, task)
    # One for each length, and none for the short batches.
    assert recorder.recorded == recorder.asked == 4
    assert len(replayed) == 3 * 9
    np.testing.assert_allclose(replayed, eager, rtol=1e-5)
    # A parameter whose gradient is 0 but for rounding goes its own way, but not far.
    assert distance(expected, found) < 1e-3 * distance(first, expected)
    assert all(p.grad is None for p in found.parameters())


@pytest.mark.parametrize("most", [0, 2])
def test_where_recording_fails_no_batch_is_lost_or_done_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    expected, found = (model_of("phrases", "bert", dropout=0.1) for _ in range(2))
    use(monkeypatch, Rerun())
    eager = train(expected, "phrases")
    use(monkeypatch, recorder := Rerun(most))
    with caplog.at_level(logging.INFO, recorded.__name__):
        assert train(found, "phrases") == eager
    assert recorder.asked == most + 1
    assert [record.getMessage() for record in caplog.records] == [
        "tiny: steps are not recorded as CUDA graphs: no graph of this"
    ]
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)


def test_steps_are_forgotten_where_another_one_needs_their_memory() -> None:
    done: list[list[int]] = []
    full = {4}

    def step(inputs: dict[str, Any], index: torch.Tensor) -> None:
        if inputs["input_ids"].shape[1] in full:
            full.clear()
            raise torch.OutOfMemoryError("no memory")
        done.append(inputs["input_ids"].flatten().tolist())

    def run(*values: int) -> None:
        steps({"input_ids": torch.tensor([values])}, np.arange(1))

    steps = RecordedSteps(step, CPU, recorder := Rerun(), "tiny")
    run(1, 2, 3)
    run(4, 5, 6)
    run(1, 2, 3, 4)
    run(7, 8, 9)
    run(1, 2, 3, 5)
    assert done == [[1, 2, 3], [4, 5, 6], [1, 2, 3, 4], [7, 8, 9], [1, 2, 3, 5]]
    assert recorder.asked == 1
    full.add(3)
    with pytest.raises(torch.OutOfMemoryError):
        run(1, 2, 3)


def test_no_recording_is_left_when_memory_is_given_back() -> None:
    kept: list[weakref.ref[Any]] = []

    class Graph:
        def replay(self) -> None: ...

    class Closing(Rerun):
        @contextmanager
        def open(self) -> Iterator[None]:
            try:
                yield
            finally:
                assert [graph() for graph in kept] == [None]
                self.closed = True

        def record(self, run: Callable[[], None]) -> Callable[[], None]:
            graph = Graph()
            kept.append(weakref.ref(graph))
            return graph.replay

    steps = RecordedSteps(lambda inputs, index: None, CPU, recorder := Closing(), "tiny")
    with steps.open():
        for _ in range(3):
            steps({"input_ids": torch.ones(1, 4)}, np.arange(1))
        assert kept[0]() is not None
    assert recorder.closed


def test_fine_tunings_on_a_device_share_a_stream_and_give_their_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Stream:
        def __init__(self, device: object) -> None:
            done.append("stream")

        def wait_stream(self, other: object) -> None: ...

    before = Stream(None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: before)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("memory"))
    nowhere = torch.device("cuda", 99)  # no other test's
    for _ in range(2):
        recorder = recorder_on(nowhere)
        assert recorder is not None
        with recorder.open():
            done.append("steps")
    assert done == ["stream", "stream", "steps", "memory", "steps", "memory"]


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory, tiny_data: PreparedData) -> Path:
    write_task_files(folder := tmp_path_factory.mktemp("files"), tiny_data)
    return folder


@pytest.mark.parametrize("name", [n for n, t in REGISTRY.items() if isinstance(t, FineTunedTask)])
def test_no_loss_depends_on_padding_or_asks_the_device_for_a_number(
    task_data: Path, subject: Subject, name: str
) -> None:
    short: dict[str, Any] = {"stride": 8} if name.startswith("squad") else {}
    task: Any = make_task(name, {"device": "cpu", "max_length": 100, **short}, "")
    part = task.part(subject, task.read(task_data)[0])
    index = np.arange(min(6, len(part.encoded)))
    at, losses = torch.from_numpy(index), []
    with task.open_copy(subject, 0) as model, torch.no_grad():
        model.eval()
        for length in (None, int(part.encoded.lengths.max()) + 3):
            inputs = part.encoded.batch(index, model, CPU, length=length)
            output = run_headed(model, inputs)
            losses.append(task.loss(part, CPU)(output, inputs, at))
    assert losses[0] > 0
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)

    nowhere = torch.device("meta")  # where tensors have no numbers, so that to ask for one fails
    numbers = output._asdict() if isinstance(output, Logits) else vars(output)
    there = {k: v.to(nowhere) for k, v in numbers.items() if isinstance(v, torch.Tensor)}
    given = {k: v.to(nowhere) for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    loss = task.loss(part, nowhere)(SimpleNamespace(**there), given, at.to(nowhere))
    assert loss.shape == ()


class Never(Rerun):
    """The same batches on the same stream, and nothing recorded."""

    def __init__(self, inner: Any) -> None:
        super().__init__(0)
        self.inner, self.open = inner, inner.open


class Counted(Never):
    """The recorder inside, counted."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.asked += 1
        replay = self.inner.record(run)
        self.recorded += 1
        return replay


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "dropout", "limit"), [("bf16", 0.0, 0.2), ("bf16", 0.1, 0.2), ("fp32", 0.1, 0.01)]
)
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("task", HEADS)
def test_cuda_graphs_train_as_steps_without_them(
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    model_type: str,
    precision: str,
    dropout: float,
    limit: float,
) -> None:
    device = torch.device("cuda", 0)
    recipe = RECIPE.model_copy(update={"precision": precision})
    first, eager, replayed, broken = (model_of(task, model_type, dropout).cuda() for _ in range(4))
    use(monkeypatch, Never(recorder_on(device)))
    train(eager, task, recipe)

    use(monkeypatch, counted := Counted(recorder_on(device)))
    train(broken, task, recipe, syncs=True)
    assert (counted.asked, counted.recorded) == (1, 0)
    use(monkeypatch, counted := Counted(recorder_on(device)))
    train(replayed, task, recipe)  # after one that broke off, too
    assert (counted.asked, counted.recorded) == (4, 4)
    moved = distance(first, eager)
    assert distance(eager, broken) < limit * moved  # with the same numbers dropped
    assert distance(eager, replayed) < limit * moved


@pytest.mark.gpu
def test_fine_tuning_again_takes_no_more_memory() -> None:
    reserved = []
    for _ in range(4):
        train(model_of("phrases", "bert").cuda(), "phrases")
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[0]
