"""Loops of one's own: scoring and tallies, loaders that resume, and masking in workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, TrainingArguments

from chronomask.errors import UsageError
from chronomask.integrations.order import KeyedLoader, KeyedSampler, with_row_ids
from chronomask.integrations.step import StepMasking
from chronomask.integrations.transformers import TimeVariantTrainer
from chronomask.integrations.workers import MaskedLoader, StepBatches, WorkerMasking
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator, as_rows
from chronomask.masking.tally import StepTally, score
from chronomask.types import UPOS_CLASSES
from tests.support.worded_rows import ROW_LENGTH, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

LINEAR = {"ratio": {"kind": "linear", "start": 0.4, "end": 0.1}}


def masker_of(tokenizer: PreTrainedTokenizerFast, **config: Any) -> Masker:
    return Masker.for_tokenizer(tokenizer, class_names=UPOS_CLASSES, seed=5, **LINEAR | config)


def test_scores_are_the_cross_entropy_of_the_predicted_tokens(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    batch = RowCollator(tokenizer)([dict(row, row_id=k) for k, row in enumerate(rows)])
    masked = masker_of(tokenizer)(as_rows(batch), 0.5)
    model = tiny_model(tokenizer).eval()
    out = model(masked.input_ids, attention_mask=batch["attention_mask"], labels=masked.labels)
    losses, correct = score(out.logits, masked)
    assert losses.mean().item() == pytest.approx(out.loss.item(), rel=1e-5)
    gathered, again = score(out.logits.flatten(0, 1)[masked.positions], masked)
    assert torch.equal(gathered, losses)
    assert torch.equal(again, correct)
    assert correct.dtype == torch.bool
    losses.mean().backward()
    assert model.cls.predictions.bias.grad is not None
    with pytest.raises(UsageError, match="fit neither"):
        score(out.logits[:3], masked)
    most = int(masked.targets.max())
    assert score(out.logits[..., : most + 1], masked)[0].isfinite().all()
    with pytest.raises(UsageError, match=rf"no place for the token {most}: the model has fewer"):
        score(out.logits[..., :most], masked)


def test_the_ratio_asked_does_not_depend_on_how_a_step_is_cut(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    rows = [dict(row, row_id=k) for k, row in enumerate(rows[:8])]
    lengths = {len(row["input_ids"]) for row in rows}
    assert len(lengths) > 1
    collate = RowCollator(tokenizer, row_length=ROW_LENGTH)
    said = []
    for size in (8, 4, 1):
        masking = StepMasking({"ratio": {"kind": "uniform_rows"}}, tokenizer, UPOS_CLASSES, seed=5)
        batches = [collate(rows[k : k + size]) for k in range(0, 8, size)]
        masking.begin_step(batches, 0.5, epoch=0)
        said.append(masking.take_ratios())
    assert said[1] == said[2] == pytest.approx(said[0])


@pytest.mark.parametrize("content", ["ptw", "token_accuracy"])
def test_a_tally_pools_micro_batches(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], content: str
) -> None:
    batch = RowCollator(tokenizer)([dict(row, row_id=k) for k, row in enumerate(rows)])
    masker = masker_of(tokenizer, content={"kind": content})
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(*batch["input_ids"].shape, len(tokenizer), generator=generator)
    size = masker.num_feedback_classes
    whole, parts = StepTally(size), StepTally(size)
    masked = masker(as_rows(batch), 0.5)
    whole.add(masker.feedback_class(masked), *score(logits, masked))
    for at in (slice(0, 5), slice(5, 32)):
        part = masker(as_rows({k: v[at] for k, v in batch.items()}), 0.5)
        parts.add(masker.feedback_class(part), *score(logits[at], part))
    a, b = whole.close(), parts.close()
    assert torch.equal(a.count, b.count)
    assert torch.equal(a.correct, b.correct)
    torch.testing.assert_close(a.loss_sum, b.loss_sum)
    assert int(a.count.sum()) == masked.num_predicted
    with pytest.raises(UsageError, match="no losses"):
        whole.close()


def test_a_plain_loop_learns_which_classes_are_hard(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    torch.manual_seed(0)
    model = tiny_model(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = KeyedLoader(rows, batch_size=8, collate_fn=RowCollator(tokenizer))
    masker = masker_of(tokenizer, content={"kind": "ptw", "ema_decay": 0.5})
    for epoch in range(2):
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            progress = (epoch * 4 + number) / 8
            masked = masker(batch, progress)  # the loader's batches know their epoch
            again = masker(as_rows(batch, epoch=epoch), progress)
            assert torch.equal(masked.labels, again.labels)
            logits = model(masked.input_ids, attention_mask=batch["attention_mask"]).logits
            losses, correct = score(logits, masked)
            losses.mean().backward()
            optimiser.step()
            optimiser.zero_grad()
            masker.observe(masked, losses, correct)
            masker.end_step()
    weights = masker.class_weights()
    assert weights is not None
    assert len(set(weights.values())) > 2


def test_a_keyed_loader_goes_on_where_it_was(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    collate = RowCollator(tokenizer)

    def loader() -> KeyedLoader:
        return KeyedLoader(rows[:10], batch_size=3, collate_fn=collate)

    first = loader()
    all_ids = [batch["row_id"].tolist() for batch in first]
    assert sorted(row for ids in all_ids for row in ids) == list(range(10))
    assert len(first) == 4
    for taken in range(1, 5):
        stopped = loader()
        iterator = iter(stopped)
        for _ in range(taken):
            next(iterator)
        resumed = loader()
        resumed.load_state_dict(stopped.state_dict())
        left = [batch["row_id"].tolist() for batch in resumed]
        if taken < 4:
            assert left == all_ids[taken:]
            assert [b["row_id"].tolist() for b in resumed] == all_ids  # once only
        else:
            first.set_epoch(1)
            assert left == [batch["row_id"].tolist() for batch in first]
    assert list(KeyedSampler(10, seed=1)) != list(KeyedSampler(10, seed=2))


def test_a_keyed_loader_that_accelerate_is_to_go_on_with_names_its_own_way(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    loader = KeyedLoader(rows, batch_size=4, collate_fn=RowCollator(tokenizer))
    with pytest.raises(UsageError, match=r"load_state_dict .*not skip_first_batches"):
        next(iter(skip_first_batches(loader, 2)))


def test_a_keyed_loader_refuses_what_torch_makes_of_lists() -> None:
    plain = [{"input_ids": [2, 5, 6, 7, 3]} for _ in range(4)]
    with pytest.raises(UsageError, match=r"collate_fn=cm\.RowCollator\(tokenizer\)"):
        next(iter(KeyedLoader(plain, batch_size=2)))


def test_a_keyed_loader_gives_rows_that_are_lists_one_by_one() -> None:
    own = [{"input_ids": [5, 6, k], "row_id": 3 + k} for k in range(4)]
    loader = KeyedLoader(own, batch_size=None)
    seen = list(loader)
    assert sorted(seen, key=lambda row: row["row_id"]) == [{**row, "epoch": 0} for row in own]
    assert loader.state_dict()["rows"] == 4
    assert [row["row_id"] for row in KeyedLoader(own, collate_fn=lambda rows: rows[0])] == [
        row["row_id"] for row in seen
    ]


def test_a_keyed_loader_goes_on_in_batches_of_another_size(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    def loader(batch_size: int, **more: Any) -> KeyedLoader:
        collate = RowCollator(tokenizer)
        return KeyedLoader(rows[:10], batch_size=batch_size, collate_fn=collate, **more)

    order = [row for batch in loader(1) for row in batch["row_id"].tolist()]
    for before, after in ((2, 4), (4, 3), (3, 10), (1, 2)):
        stopped = loader(before)
        iterator = iter(stopped)
        for taken in range(before, 10, before):
            next(iterator)
            resumed = loader(after)
            resumed.load_state_dict(stopped.state_dict())
            left = [row for batch in resumed for row in batch["row_id"].tolist()]
            assert left == order[taken:]
    most = loader(4, drop_last=True)
    assert len(list(most)) == 2
    most.load_state_dict(most.state_dict())  # two rows are left, of which no batch is made
    assert most.state_dict() == loader(4).state_dict() | {"epoch": 1}


def test_a_keyed_loader_says_where_it_stands_between_iterations(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    loader = KeyedLoader(rows[:10], batch_size=3, collate_fn=RowCollator(tokenizer))
    order = {"num_rows": 10, "seed": 0, "num_processes": 1}
    first, _ = list(loader), loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "rows": 0, **order}  # not an epoch that is over
    loader.load_state_dict({"epoch": 2, "rows": 6, **order})
    assert loader.state_dict() == {"epoch": 2, "rows": 6, **order}
    loader.set_epoch(2)
    assert len(list(loader)) == 2
    loader.load_state_dict({"epoch": 2, "rows": 6, **order})
    loader.set_epoch(0)  # a loop that begins anew loses no rows
    assert [b["row_id"].tolist() for b in loader] == [b["row_id"].tolist() for b in first]


def test_a_keyed_loader_takes_the_state_of_version_0_2_0(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    """It counted batches, and knew neither the data set nor the processes."""

    def loader(**more: Any) -> KeyedLoader:
        return KeyedLoader(rows[:10], batch_size=3, collate_fn=RowCollator(tokenizer), **more)

    def left(epoch: int, batches: int, **more: Any) -> list[list[int]]:
        resumed = loader(**more)
        resumed.load_state_dict({"epoch": epoch, "batches": batches})
        return [batch["row_id"].tolist() for batch in resumed]

    def whole(epoch: int, **more: Any) -> list[list[int]]:
        fresh = loader(**more)
        fresh.set_epoch(epoch)
        return [batch["row_id"].tolist() for batch in fresh]

    assert left(1, 0) == whole(1)
    assert left(1, 2) == whole(1)[2:]
    assert left(1, 4) == whole(2)  # the epoch was over
    assert left(1, 3, drop_last=True) == whole(2, drop_last=True)
    for wrong in ({"epoch": 1, "batches": "2"}, {"epoch": None, "batches": 2}):
        with pytest.raises(UsageError, match=r"give what loader\.state_dict\(\) returned"):
            loader().load_state_dict(wrong)  # type: ignore[arg-type]


def test_a_keyed_loader_refuses_another_state(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    def loader(number: int = 10, **more: Any) -> KeyedLoader:
        return KeyedLoader(rows[:number], collate_fn=RowCollator(tokenizer), **more)

    state = loader().state_dict()
    with pytest.raises(UsageError, match=r"has no 'rows' \(it has 'epoch'\)"):
        loader().load_state_dict({"epoch": 1})
    wrong: list[dict[str, Any]] = [{"epoch": "x"}, {"rows": None}, {"rows": True}]
    for given in wrong:
        with pytest.raises(UsageError, match=r"has (epoch|rows) = .*: give what loader.state_dict"):
            loader().load_state_dict(state | given)
    with pytest.raises(UsageError, match=r"has no 'epoch' \(it has nothing\)"):
        loader().load_state_dict(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="with num_rows = 10, this one has 9"):
        loader(9).load_state_dict(state)
    with pytest.raises(UsageError, match="with seed = 0, this one has 3"):
        loader(seed=3).load_state_dict(state)
    with pytest.raises(UsageError, match="with num_processes = 2, this one has 1"):
        loader().load_state_dict(state | {"num_processes": 2})


class SizedStream(IterableDataset[dict[str, Any]]):
    """A stream that knows how many rows it has."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def test_a_stream_with_a_length_is_a_stream(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    stream = SizedStream(rows[:8])
    numbered = with_row_ids(stream)
    assert len(numbered) == 8
    assert len({row["row_id"] for row in numbered}) == 8
    with pytest.raises(TypeError, match="has no len"):
        len(with_row_ids(iter(rows)))
    collate = RowCollator(tokenizer)
    masked = {"masker": masker_of(tokenizer), "batch_size": 4, "num_steps": 4}
    for make in (KeyedLoader, lambda given: MaskedLoader(given, collate_fn=collate, **masked)):
        with pytest.raises(UsageError, match="of type SizedStream, gives rows in an order of its"):
            make(stream)
    trainer = TimeVariantTrainer(
        model=tiny_model(tokenizer),
        args=TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True
        ),
        masking={"ratio": 0.3, "content": {"kind": "none"}},
        train_dataset=stream,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_several_data_sets_by_name_and_tables_are_told_apart(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    several = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    collate = RowCollator(tokenizer)
    masked = {"masker": masker_of(tokenizer), "batch_size": 4, "num_steps": 4}
    columns: Any = rows
    table = pandas.DataFrame(columns)
    makers: list[Any] = [
        with_row_ids,
        KeyedLoader,
        lambda given: MaskedLoader(given, collate_fn=collate, **masked),
    ]
    for make in makers:
        with pytest.raises(UsageError, match=r"is a dict of train; .* dataset\['train'\]"):
            make(several)
        with pytest.raises(UsageError, match=r"type DataFrame, .*not at \[0\].*from_pandas"):
            make(table)
    by_place = dict(enumerate(rows[:4]))
    assert [row["row_id"] for row in map(with_row_ids(by_place).__getitem__, range(4))] == [
        0,
        1,
        2,
        3,
    ]


def test_ordered_loaders_refuse_what_would_order_them_otherwise(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    collate = RowCollator(tokenizer)
    with pytest.raises(UsageError, match="takes no shuffle"):
        KeyedLoader(rows, shuffle=True)
    with pytest.raises(UsageError, match=r"takes no sampler.*use_distributed_sampler=False"):
        KeyedLoader(rows, sampler=KeyedSampler(len(rows)))
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    masked = {"masker": masker_of(tokenizer), "batch_size": 4, "num_steps": 4}
    for make in (
        lambda **options: KeyedLoader(rows, collate_fn=collate, **options),
        lambda **options: MaskedLoader(rows, collate_fn=collate, **masked, **options),
    ):
        with pytest.raises(UsageError, match=r"with in_order=False some would come twice.*leave"):
            make(in_order=False, num_workers=2)
        with pytest.raises(UsageError, match="takes no shuffle"):
            make(shuffle=True)
        assert len(make(in_order=True))
    with pytest.raises(UsageError, match="of type IterableDataset, has no length"):
        KeyedLoader(stream)
    with pytest.raises(UsageError, match="of type IterableDataset, has no length"):
        MaskedLoader(stream, collate_fn=collate, **masked)
    for own in (
        KeyedLoader(rows, batch_size=4, collate_fn=collate),
        MaskedLoader(rows, collate_fn=collate, **masked),
    ):
        prepared = Accelerator(cpu=True).prepare(own)
        with pytest.raises(UsageError, match=r"leave the loader out of prepare\(...\)"):
            next(iter(prepared))
        assert len(list(own)) == len(own)


def test_a_masked_loader_is_read_twice_at_once(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    loader = MaskedLoader(
        rows,
        masker=masker_of(tokenizer),
        batch_size=4,
        num_steps=3,
        collate_fn=RowCollator(tokenizer),
    )
    pairs = list(zip(loader, loader, strict=True))
    assert len(pairs) == 3
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in pairs)


def test_ranks_share_the_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def places(rank: int, world: int) -> list[Any]:
        monkeypatch.setattr("chronomask.integrations.workers.rank_and_world", lambda: (rank, world))
        return list(StepBatches(10, batch_size=4, num_steps=5, seed=1))

    alone, first, second = places(0, 1), places(0, 2), places(1, 2)
    assert [len(step) for step in first] == [2] * 5
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == list(map(sorted, alone))
    with pytest.raises(UsageError, match="make it a multiple of 3"):
        places(0, 3)


def test_row_ids_are_places_whatever_the_data_set(rows: list[dict[str, Any]]) -> None:
    column = datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    numbered = with_row_ids(column)
    assert numbered["row_id"][:] == list(range(len(rows)))
    assert with_row_ids(numbered) is numbered
    plain = with_row_ids(rows)
    assert len(plain) == len(rows)
    assert plain[7]["row_id"] == 7
    assert with_row_ids(plain) is plain
    own = [{"input_ids": [5, 6], "row_id": 3}]  # one row, and a stream, with ids of their own
    stream = datasets.Dataset.from_list(own).to_iterable_dataset()
    for dataset in (own, stream):
        assert with_row_ids(dataset) is dataset
    assert KeyedLoader(rows).batch_size == 1


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (["a b", "c"], "of type str, without columns: tokenise it first, as "),
        (
            [[2, 3], [2, 3]],
            r"of type list, without columns: give its rows as \[\{'input_ids': row\}",
        ),
        ([torch.tensor([2, 3])], "of type Tensor, without columns"),
        (
            {"input_ids": [[2, 3]]},
            r"is columns by name \(input_ids\), .* datasets.Dataset.from_dict",
        ),
    ],
)
def test_what_has_no_rows_with_columns_is_refused(
    tokenizer: PreTrainedTokenizerFast, dataset: Any, says: str
) -> None:
    collate = RowCollator(tokenizer)
    with pytest.raises(UsageError, match=says):
        with_row_ids(dataset)
    with pytest.raises(UsageError, match=says):
        KeyedLoader(dataset, collate_fn=collate)
    with pytest.raises(UsageError, match=says):
        MaskedLoader(dataset, masker_of(tokenizer), batch_size=1, num_steps=1, collate_fn=collate)


def test_a_data_set_without_rows_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="has no rows"):
        KeyedLoader([], collate_fn=RowCollator(tokenizer))
    with pytest.raises(UsageError, match="of type NoneType: give one that has rows"):
        with_row_ids(None)
    with pytest.raises(UsageError, match="a row of the stream is of type str"):
        list(with_row_ids(text for text in ["a b"]))


def test_rows_that_are_made_on_reading_are_numbered_too(rows: list[dict[str, Any]]) -> None:
    texts = datasets.Dataset.from_list([{"text": "a b"}, {"text": "c"}])
    made = texts.with_transform(lambda batch: {"input_ids": [[2, 3] for _ in batch["text"]]})
    assert [dict(row) for row in with_row_ids(made)] == [
        {"input_ids": [2, 3], "row_id": 0},
        {"input_ids": [2, 3], "row_id": 1},
    ]
    own = texts.with_transform(lambda batch: batch | {"row_id": [7 for _ in batch["text"]]})
    assert with_row_ids(own) is own


def test_rows_of_a_stream_are_known_by_their_tokens(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    class Stream(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Any:
            worker = torch.utils.data.get_worker_info()
            yield from rows if worker is None else rows[worker.id :: worker.num_workers]

    stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
    assert not any("row_id" in row for row in rows)
    collate = RowCollator(tokenizer)
    ids: list[set[int]] = []
    for dataset in (with_row_ids(stream), with_row_ids(Stream())):
        for workers in (0, 2):
            context = "fork" if workers else None
            loader = DataLoader(
                dataset,
                batch_size=8,
                collate_fn=collate,
                num_workers=workers,
                multiprocessing_context=context,
            )
            ids.append({int(k) for batch in loader for k in batch["row_id"]})
    assert all(found == ids[0] for found in ids)
    assert len(ids[0]) == len({tuple(row["input_ids"]) for row in rows})
    # as a masker numbers rows that it is given without any
    assert ids[0] == {int(number) for number in as_rows(rows, collate=collate, progress=0.0).row_id}
    own = [{"input_ids": [5, 6], "row_id": 3}]
    assert next(iter(with_row_ids(iter(own))))["row_id"] == 3
    with pytest.raises(UsageError, match=r"neither 'row_id' nor 'input_ids' \(it has text\)"):
        next(iter(with_row_ids(iter([{"text": "a"}]))))


def test_a_row_draws_another_ratio_in_another_epoch(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    ratio = {"kind": "uniform_rows", "high": {"kind": "constant", "base": 1.0}}
    masker = masker_of(tokenizer, ratio=ratio)
    batch = RowCollator(tokenizer)([dict(row, row_id=k) for k, row in enumerate(rows)])
    counts = [
        (masker(as_rows(batch, epoch=epoch), 0.0).labels != -100).sum(1) for epoch in range(3)
    ]
    assert (counts[0] - counts[1]).abs().float().mean() > 2
    assert (counts[1] - counts[2]).abs().float().mean() > 2


def test_workers_mask_as_the_training_process_would(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    masker = masker_of(tokenizer, content={"kind": "fixed", "weights": {"VERB": 3.0}})
    collate = RowCollator(tokenizer, row_length=ROW_LENGTH)

    def batches(workers: int, start_step: int = 0) -> list[dict[str, torch.Tensor]]:
        loader = MaskedLoader(
            rows,
            masker,
            batch_size=6,
            num_steps=12,
            collate_fn=collate,
            seed=2,
            start_step=start_step,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        assert len(loader) == 12 - start_step
        return list(loader)

    alone, shared, resumed = batches(0), batches(4), batches(4, start_step=7)
    assert len(alone) == 12
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    for a, b in zip(alone[7:], resumed, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    for step, places in enumerate(StepBatches(32, batch_size=6, num_steps=12, seed=2)):
        features = [dict(rows[row], row_id=row) for _, _, row in places]
        own = as_rows(collate(features), epoch=[epoch for _, epoch, _ in places])
        assert torch.equal(masker(own, step / 12).labels, alone[step]["labels"])
    shares = [float((b["labels"] != -100).sum() / b["attention_mask"].sum()) for b in alone]
    assert shares[0] > 0.3
    assert shares[-1] < 0.15
    visited = [row for places in StepBatches(32, batch_size=8, num_steps=4) for _, _, row in places]
    assert sorted(visited) == list(range(32))


def test_workers_refuse_what_they_cannot_do(tokenizer: PreTrainedTokenizerFast) -> None:
    collate = RowCollator(tokenizer)
    with pytest.raises(UsageError, match="'ptw' learns"):
        WorkerMasking(collate, masker_of(tokenizer, content={"kind": "ptw"}), 10)
    with pytest.raises(UsageError, match="'responsive' ratio"):
        WorkerMasking(collate, masker_of(tokenizer, ratio={"kind": "responsive"}), 10)
    for progress in ("tokens", "masked_tokens"):  # which a loader does not count
        with pytest.raises(UsageError, match=f"'{progress}', and loader workers know steps alone"):
            WorkerMasking(collate, masker_of(tokenizer, progress=progress), 10)
    with pytest.raises(UsageError, match="num_steps is 0"):
        WorkerMasking(collate, masker_of(tokenizer), 0)
    masking = WorkerMasking(collate, masker_of(tokenizer), 10)
    with pytest.raises(UsageError, match="StepBatches"):
        masking([{"input_ids": [2, 5, 3], "row_id": 0}])
    fixed = masker_of(tokenizer, content={"kind": "fixed", "weights": {"NOUN": 0.0}})
    feature = {"input_ids": [2, 5, 3], "row_id": 0, "step": 0, "epoch": 0}
    by_class = WorkerMasking(collate, fixed, 10)
    with pytest.raises(UsageError, match="no 'token_class'"):
        by_class([feature])
    with pytest.raises(UsageError, match="start_step 11"):
        StepBatches(5, batch_size=2, num_steps=10, start_step=11)
    with pytest.raises(UsageError, match="1 or more"):
        StepBatches(0, batch_size=2, num_steps=10)
    assert pickle.loads(pickle.dumps(masking)).num_steps == 10


@pytest.mark.parametrize(
    "masking",
    [
        {"loss_per": "row"},
        {"ratio": {"kind": "uniform_rows"}, "loss_weight": {"kind": "inverse_ratio"}},
    ],
    ids=str,
)
def test_what_carries_labels_alone_refuses_masking_that_weighs_losses(
    tokenizer: PreTrainedTokenizerFast, masking: dict[str, Any]
) -> None:
    masker = Masker.for_tokenizer(tokenizer, masking)
    with pytest.raises(UsageError, match="loss_weight and loss_per of this masking weigh"):
        WorkerMasking(RowCollator(tokenizer), masker, 10)


def test_scores_of_ones_own_reach_the_masks(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    numbered = [row | {"row_id": number} for number, row in enumerate(rows)]
    scores = [[float(k % 5) for k in range(len(row["input_ids"]))] for row in rows]
    scored = [row | {"scores": own} for row, own in zip(numbered, scores, strict=True)]
    batch = RowCollator(tokenizer)(scored)
    masking = {"content": {"kind": "scores", "reference": 2.0, "slope": 3.0}}
    masker = Masker.for_tokenizer(tokenizer, masking, ratio={"kind": "constant", "base": 0.3})
    labels = torch.as_tensor(masker(batch, 0.5).labels)
    given = torch.as_tensor(batch["scores"])
    assert given[labels >= 0].mean() > given.mean() + 0.2
    with pytest.raises(UsageError, match="these rows have none"):
        masker(RowCollator(tokenizer)(numbered), 0.5)


def test_accelerate_saves_and_restores_the_masking(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """It calls ``load_state_dict`` with the state alone."""
    accelerator = Accelerator(cpu=True)
    masking = StepMasking("arms/ptw", tokenizer, UPOS_CLASSES)
    state = {name: tensor + 1 for name, tensor in masking.state_dict().items()}
    masking.load_state_dict(state)
    accelerator.register_for_checkpointing(masking)
    accelerator.save_state(str(tmp_path))
    masking.load_state_dict({name: tensor - 1 for name, tensor in state.items()})
    accelerator.load_state(str(tmp_path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in masking.state_dict().items())
