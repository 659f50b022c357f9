"""A linear probe for universal parts of speech: what a frozen encoder's hidden states tell of a word.

A word's vector is the mean (or the first) of its pieces' hidden states in one layer; a softmax regression
on the words of the train part is scored on the words of the test part. The regression is convex and
fitted until it stops moving, so nothing is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.conllu import Sentence, as_text, sentences
from chronomask.errors import UsageError
from chronomask.evaluate.batches import by_length, end_to_end
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Cached, Task, files_in, folder_of
from chronomask.evaluate.vectors import have_length
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.runs.result import TaskResult
from chronomask.storage import files_sha256
from chronomask.text_files import read_lines
from chronomask.types import UPOS, Device, send

if TYPE_CHECKING:
    import torch

__all__ = ["ProbeConfig", "ProbeTask", "fit_softmax", "treebank_files", "word_pieces"]

_ENDS = (".conllu", ".conllu.gz", ".conllu.xz")


class ProbeConfig(Config):
    """What is probed, and how."""

    treebank: str | None = None
    """how its files' names begin, such as en_ewt; none: the only one there"""
    part: Literal["dev", "test"] = "test"
    """the part that is scored; the probe is fitted on train"""
    layer: int = -1
    """hidden states of this layer: 0 is the embeddings, −1 the last layer"""
    pieces: Literal["mean", "first"] = "mean"
    """a word's vector, of its pieces"""
    max_length: Annotated[int, Field(ge=8)] = 512
    """tokens of a row, specials included, or the model's own bound; a longer sentence is cut in rows"""
    l2: Annotated[float, Field(gt=0)] = 1.0
    """weight decay: ½·l2·‖W‖² beside the sum of the words' losses"""
    max_steps: Annotated[int, Field(ge=1)] = 300
    """most iterations of L-BFGS"""
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """tokens of a forward pass"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """at most so many sentences of each part, for a quick look; none: all"""


class ProbeTask(Task[ProbeConfig]):
    """Accuracy of the probe, and each tag's share of words found."""

    name = "upos_probe"
    title = "UPOS probe"
    family = "probe"
    draws = False
    outside_recipe = ("batch_tokens", "treebank")

    def __init__(self, config: ProbeConfig | None = None) -> None:
        super().__init__(config)
        self._read = Cached[list[list[Sentence]]]()

    def data_sha256(self, task_data: Path) -> str:
        """Of the two files."""
        return files_sha256(treebank_files(task_data, self.config))

    def check(self, model: Subject, task_data: Path) -> None:
        """Read both parts; raises UsageError or DataError."""
        self._parts(task_data)
        from chronomask.model.device import choose_device  # brings torch: files that lack cost none

        choose_device(self.config.device)
        model.check_head("AutoModel")
        model.check_offsets()
        layers = getattr(model.config, "num_hidden_layers", None)
        if layers is None:
            raise UsageError(
                f"{model.name} is of type '{model.config.model_type}', whose config does not say how many "
                "layers there are: choose another model, or another task"
            )
        if not -layers - 1 <= self.config.layer <= layers:
            raise UsageError(
                f"{self.name}: layer is {self.config.layer}; {model.name} has layers 0 (the embeddings) to "
                f"{layers}: --set {self.name}.layer=…"
            )

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Encode both parts, fit on the first, score the second."""
        import torch

        from chronomask.model.device import choose_device

        started = time.monotonic()
        parts = self._parts(task_data)
        device = choose_device(self.config.device)
        encoder = model.open_as("AutoModel", device)
        vectors, tags, missing = [], [], 0
        for part in parts:
            found = self._encode(model, encoder.eval(), part, progress)
            vectors.append(found[0])
            tags.append(found[1])
            missing += found[2]
        label = tags[1]
        if all(have_length(each).all() for each in vectors):
            weight, bias = fit_softmax(
                vectors[0], torch.from_numpy(tags[0]).to(device), len(UPOS), self.config.l2,
                self.config.max_steps,
            )  # fmt: skip
            prediction = (vectors[1] @ weight + bias).argmax(1).cpu().numpy()
            right = (prediction == label).astype(np.float64)
        else:  # there is nothing to fit
            prediction, right = np.full(len(label), -1), np.full(len(label), np.nan)
        return self.result(
            model,
            seed,
            started,
            metrics={"accuracy": float(right.mean())},
            primary="accuracy",
            num_examples={
                "train": len(tags[0]),
                self.config.part: len(label),
                "words_without_tokens": missing,
            },
            data_sha256=self.data_sha256(task_data),
            details={
                f"accuracy/{tag}": float(right[label == number].mean())
                for number, tag in enumerate(UPOS)
                if (label == number).any()
            },
            examples={"prediction": prediction.astype(np.int8), "label": label.astype(np.int8)},
            left_out={"words that the tokenizer drops": missing},
        )

    def _parts(self, task_data: Path) -> list[list[Sentence]]:
        def read() -> list[list[Sentence]]:
            paths = treebank_files(task_data, self.config)
            return [list(sentences(read_lines(path), path))[: self.config.limit] for path in paths]

        return self._read.of(self.data_sha256(task_data), read)

    def _encode(
        self, model: Subject, encoder: Any, part: Sequence[Sentence], progress: bool
    ) -> tuple[torch.Tensor, NDArray[np.int64], int]:
        """Vectors float32 [W, H] on the device and tags int64 [W] of the words in file order, and how
        many words have no token and are left out.
        """
        import torch

        from chronomask.evaluate.heads import without_unread_mask

        config = self.config
        longest = min(config.max_length, model.max_length)
        label = f"{self.name} encoding"
        with Progress(label, len(part), "sentences", shown=progress, brief=True) as bar:
            rows, words, tags = word_pieces(model.tokenizer, part, longest, bar)
        encoded = end_to_end(rows, None, model.tokenizer)
        word_of = np.concatenate(words)  # of every token, in the order of `encoded.ids`
        if config.pieces == "first":
            first = np.zeros(word_of.size, bool)
            first[np.unique(word_of, return_index=True)[1]] = True
            word_of = np.where(first, word_of, -1)
        device = next(encoder.parameters()).device
        sums = torch.zeros(len(tags), encoder.config.hidden_size, device=device)
        with (
            torch.inference_mode(),
            Progress(self.name, len(encoded), "rows", shown=progress) as shown,
        ):
            size = max(1, config.batch_tokens // longest)
            for index in by_length(encoded.lengths, size, encoder):
                inputs = without_unread_mask(encoder, encoded.batch(index, encoder, device))
                states = encoder(**inputs, output_hidden_states=True).hidden_states[config.layer]
                lengths = encoded.lengths[index]
                place = np.arange(lengths.max())
                real = place < lengths[:, None]
                of_token = np.full(real.shape, -1)
                of_token[real] = word_of[(encoded.bounds[index][:, None] + place)[real]]
                flat = send(of_token.ravel(), device)
                chosen = flat >= 0
                if states.shape[1] < real.shape[1]:
                    raise UsageError(
                        f"{self.name}: layer {config.layer} of {model.name} has {states.shape[1]} states for "
                        f"{real.shape[1]} tokens, as it pools them: --set {self.name}.layer=-1"
                    )
                states = states[:, : real.shape[1]]  # some models, as Reformer, pad rows themselves
                if (
                    states.shape[2] != sums.shape[1]
                ):  # and its states may be twice as wide as its config says
                    sums = torch.zeros(len(tags), states.shape[2], device=device)
                sums.index_add_(0, flat[chosen], states.flatten(0, 1)[chosen].float())
                shown.advance(index.size)
        counts = np.bincount(word_of[word_of >= 0], minlength=len(tags))
        there = np.flatnonzero(counts)
        means = sums / torch.from_numpy(np.maximum(counts, 1)).to(device)[:, None]
        return means[torch.from_numpy(there).to(device)], tags[there], len(tags) - there.size


def treebank_files(task_data: Path, config: ProbeConfig) -> tuple[Path, Path]:
    """The train part and the scored part; raises UsageError where it is not clear which.

    Looked for in ``task_data``/probe or ``task_data``, and one folder below.
    """
    place = folder_of(task_data, "probe")
    begins = config.treebank or ""
    found: dict[str, list[Path]] = {}
    for part in ("train", config.part):
        files = files_in(place, tuple(f"-{part}{end}" for end in _ENDS), below=True)
        named = [path for path in files if path.name.startswith(begins)]
        # The name of one treebank may begin that of another, as en_gum that of en_gumreddit.
        whole = [path for path in named if path.name.partition("-")[0] == begins]
        found[part] = whole or named
    for part, paths in found.items():
        if not paths:
            raise UsageError(
                f"{place} holds no {begins}*-{part}.conllu (nor .gz, .xz), itself or one folder below: "
                "name a folder with a treebank of Universal Dependencies"
            )
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise UsageError(
                f"{place} holds several treebanks ({names}): choose one, such as "
                f"--set upos_probe.treebank={paths[0].name.partition('-')[0]}"
            )
    return found["train"][0], found[config.part][0]


def word_pieces(
    tokenizer: Any, part: Sequence[Sentence], max_length: int, shown: Progress = NOT_SHOWN
) -> tuple[list[list[int]], list[NDArray[np.int64]], NDArray[np.int64]]:
    """Rows of token ids; for each row the word of every token (−1: of none), numbered through all rows;
    and the words' tags int64 [W] as numbers in ``UPOS``.

    A token belongs to the word that holds its last character. A sentence of more than ``max_length``
    tokens is halved until its parts fit, so that no word is lost. ``shown``: counts the sentences.
    """
    rows: list[list[int]] = []
    words: list[NDArray[np.int64]] = []
    tags: list[int] = []
    waiting = [as_text([sentence]) for sentence in reversed(part)]
    waiting = [(text, list(zip(w.starts, w.ends, w.tags, strict=True))) for text, w in waiting]
    left = len(waiting)
    while waiting:
        text, spans = waiting.pop()
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = encoded["input_ids"]
        if len(ids) > max_length and len(spans) > 1:
            middle = len(spans) // 2
            for half in (spans[middle:], spans[:middle]):
                begin = half[0][0]
                moved = [(start - begin, end - begin, tag) for start, end, tag in half]
                waiting.append((text[begin : half[-1][1]], moved))
            continue
        offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)[:max_length]
        starts = np.array([start for start, _, _ in spans])
        ends = np.array([end for _, end, _ in spans])
        last = offsets[:, 1] - 1
        word = np.searchsorted(starts, last, side="right") - 1
        inside = (offsets[:, 1] > offsets[:, 0]) & (word >= 0) & (last < ends[word])
        rows.append(ids[:max_length])
        words.append(np.where(inside, word + len(tags), -1))
        tags += [UPOS.index(tag) for _, _, tag in spans]
        if len(waiting) < left:  # the last part of a sentence
            left = len(waiting)
            shown.advance()
    return rows, words, np.array(tags, np.int64)


def fit_softmax(
    x: torch.Tensor, y: torch.Tensor, num_classes: int, l2: float, max_steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [H, C] and bias [C] that minimise Σ cross-entropy + ½·l2·‖W‖² over x [N, H], y int64 [N].

    W is that of standardised x: each column with mean 0 and variance 1. What comes back takes x as it is.
    """
    import torch
    from torch.nn import functional

    mean, spread = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x = (x - mean) / spread
    weight = torch.zeros(x.shape[1], num_classes, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=max_steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-9,
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(x @ weight + bias, y)
        value = value + 0.5 * l2 / len(y) * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    weight, bias = weight.detach() / spread[:, None], bias.detach()
    return weight, bias - mean @ weight
