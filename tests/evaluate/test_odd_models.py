"""Models that are not the usual encoder: each is measured rightly, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
    CanineConfig,
    CanineTokenizer,
    ConvBertConfig,
    FNetConfig,
    FunnelConfig,
    GPT2Config,
    MobileBertConfig,
    NystromformerConfig,
    PerceiverConfig,
    PretrainedConfig,
    ReformerConfig,
    T5Config,
    XLNetConfig,
    XmodConfig,
    YosoConfig,
)

from chronomask.errors import DataError, RunError, UsageError
from chronomask.evaluate.batches import encode
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.finetune import FineTuning, fine_tune, outputs
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.evaluate.tasks.probe import ProbeConfig, ProbeTask
from chronomask.evaluate.vectors import Pooling, unit_vectors
from chronomask.model.open import open_tokenizer
from chronomask.progress import Progress
from tests.support.official_files import squad_values, write_squad
from tests.support.official_model import make_tokenizer
from tests.support.tiny_models import SIZES

WIDE = {**SIZES, "max_position_embeddings": 128, "initializer_range": 0.3}
TEXTS = ["the film", "the film was warm and kind", "a very cold story was rude", "the actor"]
QUICK = ["epochs=1", "max_length=32", "batch_size=8"]
MIXING: dict[str, PretrainedConfig] = {
    "convbert": ConvBertConfig(embedding_size=32, head_ratio=1, **WIDE),
    "fnet": FNetConfig(**{k: v for k, v in WIDE.items() if k != "num_attention_heads"}),
    "funnel": FunnelConfig(
        block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=48
    ),
    "mobilebert": MobileBertConfig(
        embedding_size=16, intra_bottleneck_size=32, true_hidden_size=32, **WIDE
    ),
    "yoso": YosoConfig(**WIDE),
}
"""Types that mix the padding of a row into its tokens."""


def save(folder: Path, config: PretrainedConfig, auto: Any = AutoModelForMaskedLM) -> Subject:
    """A model of that config with random weights, and a tokenizer."""
    tokenizer = make_tokenizer()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
    table = model.get_input_embeddings()
    if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
        with torch.no_grad():
            table.weight[table.padding_idx].normal_(std=0.3)  # training moves it away from 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return find_subject(str(folder))


@pytest.mark.parametrize("kind", MIXING)
def test_what_a_model_says_of_a_text_does_not_depend_on_the_others(
    kind: str, tmp_path: Path
) -> None:
    subject = save(tmp_path, MIXING[kind])
    tokenizer = subject.tokenizer

    def log_likelihoods(texts: list[str]) -> list[float]:
        sentences, _ = encode_sentences(tokenizer, texts, 64)
        found = pseudo_log_likelihood(
            subject.masked_lm(), sentences, tokenizer, PseudoLikelihood(), label="", progress=False
        )
        return found.tolist()

    def vectors(texts: list[str]) -> list[list[float]]:
        encoder = subject.open_as("AutoModel").eval()
        encoded = encode(tokenizer, texts, None, 64)
        with Progress("", len(texts), shown=False) as shown:
            return unit_vectors(encoder, encoded, Pooling(), shown).tolist()

    classifier = subject.open_as("AutoModelForSequenceClassification", num_labels=2)

    def logits(texts: list[str]) -> list[list[float]]:
        encoded = encode(tokenizer, texts, None, 64)
        made = np.zeros((len(texts), 2))
        for index, output in outputs(classifier, encoded, FineTuning()):
            made[index] = output.logits.numpy()
        return made.tolist()

    for measure in (log_likelihoods, vectors, logits):
        alone = [measure([text])[0] for text in TEXTS]
        np.testing.assert_allclose(measure(TEXTS), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MIXING)
def test_a_step_of_fine_tuning_is_that_of_texts_without_padding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = save(tmp_path, MIXING[kind])
    model = subject.open_as("AutoModelForSequenceClassification", num_labels=2)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    encoded = encode(subject.tokenizer, TEXTS, None, 64)
    labels = torch.tensor([0, 1, 1, 0])
    cross_entropy = torch.nn.functional.cross_entropy
    alone = [encoded.batch(np.array([k]), model, torch.device("cpu")) for k in range(len(TEXTS))]
    losses = [cross_entropy(model(**row).logits, labels[k : k + 1]) for k, row in enumerate(alone)]
    torch.stack(losses).mean().backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    found: list[torch.Tensor | None] = []

    def note(parameters: list[torch.nn.Parameter], _: float) -> None:
        found.extend(None if p.grad is None else p.grad.clone() for p in model.parameters())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    fine_tune(
        model, encoded, lambda output, _, index: cross_entropy(output.logits, labels[index]),
        FineTuning(epochs=1, batch_size=4), 1e-3, 0,
    )  # fmt: skip
    assert len(found) == len(expected)  # of one step
    for ours, right in zip(found, expected, strict=True):
        if right is not None:
            torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-5)


def test_a_classifier_of_three_classes_can_learn_to_answer_questions(tmp_path: Path) -> None:
    config = BertConfig(num_labels=3, **WIDE)
    subject = save(tmp_path / "classifier", config, BertForSequenceClassification)
    values = squad_values([[("the key is here", [("where is the key?", "here")])]])
    write_squad(tmp_path / "squad", values, values)
    settings = ["epochs=1", "max_length=64", "stride=8", "max_question_tokens=20"]
    (result,) = evaluate(
        subject, make_tasks(["squad"], settings), tmp_path, out=tmp_path / "out", progress=False
    )
    assert result.num_examples["dev"] == 1


def test_a_decoder_is_fine_tuned_though_its_config_has_no_padding(
    tmp_path: Path, glue: Path
) -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64)
    subject = save(tmp_path / "gpt2", config, AutoModel)
    (result,) = evaluate(
        subject, make_tasks(["cola"], QUICK), glue, out=tmp_path / "out", progress=False
    )
    assert result.num_examples["dev"] > 1


@pytest.mark.parametrize("task", ["cola", "sts", "blimp"])
def test_an_encoder_that_is_set_to_read_in_one_direction_is_refused(
    tmp_path: Path, glue: Path, task: str
) -> None:
    """Our attention would read both, and transformers one, so nobody else would find the same score."""
    save(tmp_path / "bert", BertConfig(is_decoder=True, **WIDE))
    pair = {"sentence_good": "the film was warm", "sentence_bad": "the film warm was", "UID": "a"}
    pair |= {"field": "syntax", "linguistics_term": "order"}
    (glue / "a.jsonl").write_text(json.dumps(pair) + "\n")
    told = r'bert has is_decoder set to true.*set "is_decoder": false in its config\.json'
    with pytest.raises(UsageError, match=told):
        evaluate(str(tmp_path / "bert"), task, glue, progress=False)


def test_all_tasks_say_beforehand_what_they_cannot_measure(tmp_path: Path, glue: Path) -> None:
    config = T5Config(
        d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    save(tmp_path / "t5", config, AutoModel)
    with pytest.raises(UsageError, match=r"^sts: .* of type 't5', which is an encoder with a dec"):
        evaluate(str(tmp_path / "t5"), "sts", glue, progress=False)
    save(tmp_path / "perceiver", PerceiverConfig(d_model=32, d_latents=32, num_latents=4))
    with pytest.raises(UsageError, match="whose config does not say how many layers there are"):
        evaluate(str(tmp_path / "perceiver"), "upos_probe", treebank(tmp_path), progress=False)


def treebank(folder: Path) -> Path:
    """A folder with a treebank of one sentence."""
    line = "1\tfilm\t_\tNOUN\t_\t_\t0\t_\t_\t_\n\n"
    for part in ("train", "test"):
        (folder / f"xx-ud-{part}.conllu").write_text(line)
    return folder


def test_a_fault_of_many_tasks_is_told_once(tmp_path: Path, glue: Path) -> None:
    save(tmp_path / "bare", BertConfig(**WIDE))
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(Exception, match=r"^cola, rte, sts: .* has no tokenizer") as refused:
        evaluate(str(tmp_path / "bare"), "cola,rte,sts", glue, progress=False)
    assert str(refused.value).count("no tokenizer") == 1
    assert "Nothing is wrong" not in str(refused.value)


def test_rows_that_an_architecture_cannot_take_are_told_in_one_sentence(
    tmp_path: Path, glue: Path
) -> None:
    config = NystromformerConfig(segment_means_seq_len=64, num_landmarks=8, **WIDE)
    subject = save(tmp_path / "model", config)
    with pytest.raises(
        RunError, match=r"^cola: .* of type 'nystromformer', and .* \(RuntimeError: shape"
    ):
        evaluate(subject, make_tasks(["cola"], QUICK), glue, out=tmp_path / "out", progress=False)


def test_an_error_of_our_own_is_not_laid_on_the_architecture(
    tmp_path: Path, glue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = save(tmp_path / "model", BertConfig(**WIDE))

    def fail(*_: object, **__: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("chronomask.evaluate.heads.run_headed", fail)
    with pytest.raises(ValueError, match="ours"):
        evaluate(subject, make_tasks(["cola"], QUICK), glue, out=tmp_path / "out", progress=False)


def test_xmod_counts_positions_from_its_padding(tmp_path: Path) -> None:
    config = XmodConfig(
        languages=["en_XX"], default_language="en_XX", pad_token_id=1,
        **WIDE | {"max_position_embeddings": 34},
    )  # fmt: skip
    subject = save(tmp_path, config)
    assert subject.max_length == 32
    model = subject.masked_lm()
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.full((1, 33), 5))


def test_texts_without_a_token_are_answered(tmp_path: Path) -> None:
    config = BertConfig(**WIDE)
    subject = save(tmp_path, config)
    subject.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # adds no token
    encoded = encode(subject.tokenizer, ["", ""], None, 16)
    assert encoded.lengths.tolist() == [0, 0]
    classifier = subject.open_as("AutoModelForSequenceClassification", num_labels=2)
    ((_, output),) = outputs(classifier, encoded, FineTuning())
    assert output.logits.isfinite().all()


def test_a_reformers_states_are_wider_and_longer_than_its_config_and_rows(tmp_path: Path) -> None:
    """Both of its streams side by side, and rows padded to whole chunks by itself."""
    config = ReformerConfig(
        attention_head_size=16, attn_layers=["local"], axial_pos_embds=False, is_decoder=False,
        feed_forward_size=48, hidden_size=32, local_attn_chunk_length=16, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    subject = save(tmp_path / "model", config)
    encoder = subject.open_as("AutoModel").eval()
    encoded = encode(subject.tokenizer, TEXTS, None, 32)
    with Progress("", len(TEXTS), "texts", shown=False) as shown:
        vectors = unit_vectors(encoder, encoded, Pooling(), shown)
        alone = unit_vectors(
            encoder, encode(subject.tokenizer, TEXTS[1:2], None, 32), Pooling(), shown
        )
    assert vectors.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(vectors[1:2], alone, atol=1e-5)
    for part in ("train", "test"):
        lines = [
            f"{k}\t{word}\t_\t{tag}\t_\t_\t0\t_\t_\t_"
            for k, (word, tag) in enumerate(
                [("the", "DET"), ("film", "NOUN"), ("was", "AUX"), ("warm", "ADJ")], 1
            )
        ]
        (tmp_path / f"en_x-ud-{part}.conllu").write_text("\n".join(lines) + "\n\n")
    for layer in (1, -1):
        tasks = make_tasks(["upos_probe"], [f"upos_probe.layer={layer}"])
        (result,) = evaluate(subject, tasks, tmp_path, out=tmp_path / str(layer), progress=False)
        assert result.metrics["accuracy"] == 1.0


def test_a_text_is_classified_by_its_own_last_token(tmp_path: Path) -> None:
    """An XLNet reads the last token of the row, which padding must not be."""
    config = XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=48)
    subject = save(tmp_path, config, AutoModel)
    model = subject.open_as("AutoModelForSequenceClassification", num_labels=2)

    def logits(texts: list[str]) -> list[list[float]]:
        encoded = encode(subject.tokenizer, texts, None, 64)
        made = np.zeros((len(texts), 2))
        for index, output in outputs(model, encoded, FineTuning()):
            made[index] = output.logits.numpy()
        return made.tolist()

    np.testing.assert_allclose(logits(TEXTS), [logits([text])[0] for text in TEXTS], atol=1e-5)


def test_a_tokenizer_of_characters_has_no_vocabulary_and_opens(tmp_path: Path, glue: Path) -> None:
    config = CanineConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=128, local_transformer_stride=8, downsampling_rate=2,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "canine")
    with pytest.raises(DataError, match="has no tokenizer"):
        open_tokenizer(tmp_path / "canine")
    CanineTokenizer().save_pretrained(tmp_path / "canine")
    assert open_tokenizer(tmp_path / "canine")("hello")["input_ids"][1] == ord("h")
    (result,) = evaluate(
        str(tmp_path / "canine"), make_tasks(["cola"], QUICK), glue, out=tmp_path / "out",
        progress=False,
    )  # fmt: skip
    assert result.num_examples["dev"] > 1


def test_a_layer_that_is_pooled_is_refused(tmp_path: Path) -> None:
    subject = save(tmp_path / "funnel", MIXING["funnel"])
    sentence = "".join(f"{k}\tfilm\t_\tNOUN\t_\t_\t0\t_\t_\t_\n" for k in range(1, 9)) + "\n"
    for part in ("train", "test"):
        (tmp_path / f"xx-ud-{part}.conllu").write_text(sentence)
    with pytest.raises(UsageError, match=r"as it pools them: --set upos_probe\.layer=-1"):
        ProbeTask(ProbeConfig(layer=2)).run(subject, tmp_path, 0, False)
    assert ProbeTask().run(subject, tmp_path, 0, False).num_examples["test"] == 8
