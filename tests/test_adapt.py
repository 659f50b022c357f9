"""``chronomask adapt``: from a checkpoint and a text to a continued model, measured before and after."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    EsmTokenizer,
    PreTrainedTokenizerBase,
    pipeline,
)

from chronomask.adapt import Plan, adapt, extend_vocabulary
from chronomask.adaptation_folder import check_apart
from chronomask.cli import app
from chronomask.config_layers import Layer
from chronomask.data.folder import PreparedData
from chronomask.errors import RunError, UsageError
from chronomask.evaluate.tasks.intrinsic import MaskedLossTask
from chronomask.model.export import export, weights_sha256
from chronomask.model.open import open_tokenizer
from chronomask.prepare.config import ByteLevelBPE, Unigram, WordPiece
from chronomask.prepare.pipeline import prepare
from chronomask.train import loop
from tests.support.corpus import made_up_text
from tests.support.tiny_models import small
from tests.support.tiny_run import tiny_run

QUICK = Plan(
    layers=[Layer("--rows 4", {"rows_per_step": 4, "device": "cpu", "threads": 1})],
    preparation=[Layer("--tagger none", {"tagger.kind": "none", "workers": 1})],
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_data: PreparedData) -> Path:
    """A model folder with a card that states a licence, as models on a hub have one."""
    run = tiny_run(tmp_path_factory.mktemp("checkpoint"), tiny_data)
    folder = run / "checkpoints" / "step-00000006" / "transformers"
    model = tmp_path_factory.mktemp("models") / "tiny-base"
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(model)
    AutoTokenizer.from_pretrained(folder).save_pretrained(model)
    (model / "README.md").write_text("---\nlicense: mit\n---\n# A base\n", encoding="utf-8")
    return model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(made_up_text(120)), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_checkpoint_is_continued_and_measured(
    checkpoint: Path, text: Path, tmp_path: Path, tiny_data: PreparedData
) -> None:
    plan = Plan(epochs=0.5, layers=QUICK.layers, preparation=QUICK.preparation, also=tiny_data.path)
    out = tmp_path / "out"
    done = adapt(checkpoint, text, out, plan, progress=False)

    rows = PreparedData.open(out / "data").split("train").num_rows
    summary = json.loads((done.run / "summary.json").read_text())
    assert summary["steps"] == -(-rows // 8)  # half a pass, four rows a step
    config = yaml.safe_load((done.run / "config.yaml").read_text())
    assert config["masking"]["ratio"] == {"kind": "linear", "start": 0.3, "end": 0.15}
    assert config["learning_rate"]["warmup_steps"] == round(0.06 * summary["steps"])

    base, model = (AutoModelForMaskedLM.from_pretrained(f) for f in (checkpoint, done.model))
    assert weights_sha256(base) != weights_sha256(model)
    for name in ("data", "also"):
        before, after = done.before[name][0], done.after[name][0]
        assert before.data_sha256 == after.data_sha256
        assert before.model_sha256 != after.model_sha256
        assert f"{before.metrics['loss']:.4f}" in str(done)

    head = yaml.safe_load((done.model / "README.md").read_text().split("---\n")[1])
    assert "\n# out\n" in (done.model / "README.md").read_text()
    assert "base_model" not in head  # a folder has no name on the hub
    assert "## Continued from tiny-base\n" in (done.model / "README.md").read_text()
    assert head["license"] == "mit"
    card = (done.model / "README.md").read_text()
    assert f"{done.after['data'][0].metrics['loss']:.4f}" in card
    assert PreparedData.open(out / "data").fingerprint in card

    again = adapt(checkpoint, text, out, plan, progress=False)  # nothing is done twice
    assert str(again) == str(done)

    result = out / "before" / "data" / "mlm-seed0.json"  # as another version might have left it
    values = json.loads(result.read_text())
    result.write_text(json.dumps(values | {"recipe": values["recipe"] | {"row_order": "data"}}))
    with pytest.raises(
        UsageError, match=r"other recipe\.row_order .*; remove .*before and .*after to"
    ):
        adapt(checkpoint, text, out, plan, progress=False)
    shutil.rmtree(out / "before")
    shutil.rmtree(out / "after")
    assert str(adapt(checkpoint, text, out, plan, progress=False)) == str(done)
    assert (done.run / "summary.json").stat().st_mtime <= (out / "after").stat().st_mtime


def test_the_tokenizer_is_the_checkpoints(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    plan = Plan(
        layers=[*QUICK.layers, Layer("--steps 1", {"steps": 1})], preparation=QUICK.preparation
    )
    adapt(checkpoint, text, tmp_path / "out", plan, progress=False)
    ours = AutoTokenizer.from_pretrained(tmp_path / "out" / "data" / "tokenizer")
    assert ours.get_vocab() == AutoTokenizer.from_pretrained(checkpoint).get_vocab()

    other = replace(plan, layers=[*QUICK.layers, Layer("--steps 2", {"steps": 2})])
    with pytest.raises(UsageError, match=r"steps \(checkpoint 1, now 2\); .*another --out$"):
        adapt(checkpoint, text, tmp_path / "out", other, progress=False)

    text.write_text(text.read_text() + "\n\nanother document", encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"sources have changed.*another --out, or remove .* anew$"
    ) as changed:
        adapt(checkpoint, text, tmp_path / "out", plan, progress=False)
    begin_anew(tmp_path / "out", str(changed.value))
    adapt(checkpoint, text, tmp_path / "out", plan, progress=False)


def begin_anew(out: Path, message: str) -> None:
    """Do what a message says: remove what was written in ``out``, and no file of anybody else's."""
    (out / "notes.md").write_text("Mine.", encoding="utf-8")
    advice = re.search(rf"remove ([\w., -]+) in {out}", message)
    assert advice is not None
    for name in advice[1].split(", "):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {path.name for path in out.iterdir()} == {".adaptation", "notes.md"}


def test_words_of_the_text_become_tokens(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    written = [each.replace("er", "erzocodipestration") for each in made_up_text(120)]
    text.write_text("\n\n".join(written), encoding="utf-8")
    plan = replace(
        QUICK,
        layers=[*QUICK.layers, Layer("--steps 1", {"steps": 1})],
        also=tmp_path / "other.txt",
        new_words=20,
        min_count=3,
    )
    (tmp_path / "other.txt").write_text("\n\n".join(made_up_text(30, seed=1)), encoding="utf-8")
    done = adapt(checkpoint, text, tmp_path / "out", plan, progress=False)

    old, new = (AutoTokenizer.from_pretrained(each) for each in (checkpoint, done.model))
    added = sorted(set(new.get_vocab()) - set(old.get_vocab()), key=new.get_vocab().__getitem__)
    assert len(added) == 20
    assert new.tokenize(f"a {added[0]}, {added[19]}")[-3:] == [added[0], ",", added[19]]
    model = AutoModelForMaskedLM.from_pretrained(done.model)
    assert model.config.vocab_size >= len(new)

    assert done.words is not None
    assert done.words.after < done.words.before
    card = (done.model / "README.md").read_text()
    assert str(done.words) in card
    assert str(done.words) in str(done)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["new_words"] == 20
    assert summary["tokens_per_word"] == {"before": done.words.before, "after": done.words.after}
    losses = [line for line in summary["measures"] if line["measure"] == "loss_per_word"]
    assert [line["measured_on"] for line in losses] == ["your text", "the other text"]
    assert all(0 < line[when] < 200 for line in losses for when in ("before", "after"))
    fill = pipeline("fill-mask", model=str(done.model), top_k=len(new))
    assert added[0] in {answer["token_str"] for answer in fill(f"so {new.mask_token} .")}

    again = adapt(checkpoint, text, tmp_path / "out", plan, progress=False)
    assert str(again) == str(done)
    with pytest.raises(UsageError, match=r"new_words is 20 there, 30 here"):
        adapt(checkpoint, text, tmp_path / "out", replace(plan, new_words=30), progress=False)


TOKENIZERS = {
    "wordpiece": WordPiece(vocab_size=300),
    "bytes": ByteLevelBPE(vocab_size=320),
    "unigram": Unigram(vocab_size=200),
}
ARCHITECTURES = {
    "bert": "wordpiece", "distilbert": "wordpiece", "electra": "wordpiece", "mpnet": "wordpiece",
    "esm": "wordpiece", "roberta": "bytes", "modernbert": "bytes", "eurobert": "bytes",
    "xlm-roberta": "unigram", "camembert": "unigram", "albert": "unigram", "deberta-v2": "unigram",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, choice in TOKENIZERS.items():
        choice.save(made_up_text(40), 64, folder / name)
    return {name: open_tokenizer(folder / name) for name in TOKENIZERS}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_common_encoder_is_continued(
    model_type: str,
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its name on the hub, from text to a model that fills masks."""
    tokenizer = tokenizers[ARCHITECTURES[model_type]]
    export(small(model_type, tokenizer, "row"), tokenizer, tmp_path / "copy", "# A base\n")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "copy")
    )
    (tmp_path / "mine.txt").write_text("\n\n".join(made_up_text(24)), encoding="utf-8")
    short = {"tagger.kind": "none", "workers": 1, "row_length": 32, "held_out": 0.2}
    changes: dict[str, Any] = {"rows_per_step": 2, "steps": 20, "device": "cpu", "threads": 1}
    seldom = {"validation.every": 20, "checkpoint.every": 20}
    layers = [Layer("--steps 20", changes | seldom)]
    plan = Plan(layers=layers, preparation=[Layer("--row-length 32", short)])
    if model_type in ("deberta-v2", "mpnet"):  # their attention takes no mask of documents
        refuse("set attention=row", "owner/tiny", tmp_path / "mine.txt", tmp_path / "out", plan)
        plan = replace(plan, layers=[*layers, Layer("--set attention=row", {"attention": "row"})])
    done = adapt("owner/tiny", tmp_path / "mine.txt", tmp_path / "out", plan, progress=False)

    before, after = (each["data"][0].metrics for each in (done.before, done.after))
    assert after["mean_loss"] < before["mean_loss"]
    assert yaml.safe_load((done.model / "README.md").read_text().split("---\n")[1])[
        "base_model"
    ] == ("owner/tiny")
    fill: Any = pipeline("fill-mask", model=str(done.model), top_k=1)
    (answer,) = fill(f"co ba {tokenizer.mask_token} di.")
    assert answer["sequence"].startswith("co ba")
    assert "  " not in answer["sequence"]


def refuse(match: str, checkpoint: Path | str, text: Path | str, out: Path, plan: Plan) -> None:
    with pytest.raises(UsageError, match=match):
        adapt(checkpoint, text, out, plan, progress=False)
    assert not out.exists()


def test_what_cannot_be_is_refused_before_any_work(
    checkpoint: Path, text: Path, tmp_path: Path, tiny_data: PreparedData
) -> None:
    out = tmp_path / "out"
    refuse("does not exist", tmp_path / "none", text, out, QUICK)
    refuse("does not exist", checkpoint, tmp_path / "none.txt", out, QUICK)
    refuse("hf download", "acme/bert", text, out, QUICK)
    refuse("--epochs", checkpoint, text, out, Plan(epochs=0))
    refuse(
        "did you mean 'steps'", checkpoint, text, out, Plan(layers=[Layer("--set", {"stepz": 1})])
    )
    late = [Layer("--set", {"late_masks.layer": 7})]
    refuse("late_masks.layer is 7; the model has", checkpoint, text, out, Plan(layers=late))
    for key, value in (
        ("data", str(tiny_data.path)),
        ("model.new_head", True),
        ("tokenizer.kind", "wordpiece"),
        ("branch", "run"),
    ):
        decided = Layer(f"--set {key}={value}", {key: value})
        refuse(f"--set {key}=.*; leave it out", checkpoint, text, out, Plan(layers=[decided]))
    misspelt = Layer("--set held_oot=9", {"held_oot": 9})  # nor is what decides itself suggested
    advice = (
        r"^--set held_oot=9: unknown key 'held_oot'; did you mean 'held_out'\? Valid: (?!.*branch)"
    )
    refuse(advice, checkpoint, text, out, Plan(layers=[misspelt]))
    nothing = replace(QUICK, preparation=[*QUICK.preparation, Layer("--set", {"held_out": 0})])
    refuse("held_out is 0", checkpoint, text, out, nothing)
    refuse("--task-data", checkpoint, text, out, Plan(tasks=("cola",)))
    refuse("--seeds 0", checkpoint, text, out, Plan(seeds=0))
    refuse("--new-words 0", checkpoint, text, out, Plan(new_words=0))
    refuse("--min-count -1", checkpoint, text, out, Plan(new_words=1, min_count=-1))
    refuse("name the text itself", checkpoint, text, out, Plan(new_words=1, also=tiny_data.path))
    refuse(
        r"nil\.txt does not exist", checkpoint, text, out, replace(QUICK, also=tmp_path / "nil.txt")
    )
    whole, other = tmp_path / "whole", tmp_path / "other"
    common: dict[str, Any] = {"row_length": 16, "workers": 1, "progress": False, "tagger": "none"}
    prepare(
        [text], whole, tokenizer={"kind": "folder", "path": str(checkpoint)}, held_out=0.0, **common
    )
    prepare([text], other, tokenizer={"vocab_size": 200}, **common)
    refuse("no held-out rows", checkpoint, text, out, replace(QUICK, also=whole))
    foreign = tmp_path / "foreign"  # of another program, which has a manifest too
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "app"}')
    refuse(r"foreign holds no \.txt", checkpoint, text, out, replace(QUICK, also=foreign))
    refuse("another tokenizer", checkpoint, text, out, replace(QUICK, also=other))
    refuse("unknown task", checkpoint, text, out, Plan(tasks=("kola",)))
    refuse("CoLA", checkpoint, text, out, Plan(tasks=("cola",), task_data=tmp_path))
    refuse("no task was named", checkpoint, text, out, Plan(task_settings=["cola.epochs=1"]))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dev.csv").write_text("text,label\na,x\n")
    (tmp_path / "own" / "train.csv").write_text("text,label\na,x\nb,y\n")
    settings = ["max_length=32", "classification.part=test"]
    own = Plan(tasks=("classification",), task_data=tmp_path / "own", task_settings=settings)
    refuse(r"no test file.* --set classification\.part=dev", checkpoint, text, out, own)
    long = [Layer("--row-length 4096", {"row_length": 4096})]
    match = r"--row-length 4096: .* positions for 32 tokens: --row-length 32"
    refuse(match, checkpoint, text, out, Plan(preparation=long))


def test_text_that_the_checkpoint_knows_nothing_of(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    other, out = tmp_path / "other.txt", tmp_path / "out"
    other.write_text("\n\n".join("漢" * k for k in range(1, 20)), encoding="utf-8")
    with pytest.raises(UsageError, match=r"out.also: nothing held out is known"):
        adapt(checkpoint, text, out, replace(QUICK, also=other), progress=False)
    assert not (out / "before").exists()


def test_text_of_which_nothing_can_be_held_out(
    checkpoint: Path, text: Path, tmp_path: Path, tiny_data: PreparedData
) -> None:
    single, out = tmp_path / "single.txt", tmp_path / "out"
    single.write_text("\n".join(made_up_text(40)), encoding="utf-8")
    match = rf"single\.txt has no held-out rows.* are 1 document\. .*; first remove data, also in {out}$"
    with pytest.raises(UsageError, match=match):
        adapt(checkpoint, text, out, replace(QUICK, also=single), progress=False)
    assert not (out / "before").exists()
    out = tmp_path / "another"
    with pytest.raises(UsageError, match="txt_documents=lines") as refused:
        adapt(checkpoint, single, out, QUICK, progress=False)
    # What it advises works.
    begin_anew(out, str(refused.value))
    lines = Layer("--set txt_documents=lines", {"txt_documents": "lines", "held_out": 0.2})
    one = Layer("--steps 1", {"steps": 1})
    plan = Plan(layers=[*QUICK.layers, one], preparation=[*QUICK.preparation, lines])
    adapt(checkpoint, single, out, plan, progress=False)


def test_the_card_names_a_snapshot_in_the_hubs_cache_as_the_hub_does(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "models--owner--tiny" / "snapshots" / "0123abc"
    shutil.copytree(checkpoint, cached)
    licence = "license: other\nlicense_name: own\nlicense_link: LICENSE"
    (cached / "README.md").write_text(f"---\n{licence}\n---\n# A base\n", encoding="utf-8")
    plan = replace(QUICK, layers=[*QUICK.layers, Layer("--steps 1", {"steps": 1})])
    done = adapt(cached, text, tmp_path / "out", plan, progress=False)
    head = yaml.safe_load((done.model / "README.md").read_text().split("---\n")[1])
    assert head["base_model"] == "owner/tiny"
    assert (head["license"], head["license_name"], head["license_link"]) == (
        "other", "own", "LICENSE",
    )  # fmt: skip
    refuse(f"name its snapshot, {cached}", cached.parents[1], text, tmp_path / "more", plan)


def test_the_checkpoint_is_not_the_folder_of_its_adaptation(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    before = sorted(checkpoint.iterdir())
    (tmp_path / "link").symlink_to(checkpoint)
    for out in (checkpoint, tmp_path / "link"):
        with pytest.raises(UsageError, match="is the checkpoint that is continued: choose another"):
            adapt(checkpoint, text, out, QUICK, progress=False)
    assert sorted(checkpoint.iterdir()) == before


def test_the_model_of_an_adaptation_is_not_continued_in_its_own_folder(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    """What must be removed there to adapt anew, or is written over, would be the model itself."""
    out = tmp_path / "out"
    shutil.copytree(checkpoint, out / "model")
    (out / ".adaptation").touch()
    before = contents(out)
    for place in (out, out / "." / "model" / ".."):
        with pytest.raises(
            UsageError, match=r"out.* holds .*model, the checkpoint that is continued"
        ):
            adapt(out / "model", text, place, QUICK, progress=False)
    assert contents(out) == before


def contents(folder: Path) -> dict[str, int]:
    """Every file below a folder and when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def test_a_folder_of_something_else_is_refused_and_kept(
    checkpoint: Path, text: Path, tmp_path: Path, tiny_data: PreparedData
) -> None:
    """A run, prepared data, a study, a model, an own project: none is written to."""
    run, data, study, project, models = (
        tmp_path / name for name in ("run", "prepared", "study", "project", "models")
    )
    shutil.copytree(tiny_data.path, data)
    for folder, *names in (
        (run, "config.yaml", "metrics.jsonl", "summary.json"),
        (study, "study.yaml", "runs/a/metrics.jsonl", "data/manifest.json"),
        (project, "data/a.csv", "before/notes.md"),
        (models, "model/config.json", "summary.json"),
    ):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
    shutil.copytree(tiny_data.path, models / "data")  # prepared, and yet a model of somebody's
    for folder, said in (
        (run, "; it is a run, .*"),
        (data, "; it is prepared data, .*"),
        (study, "; it is a study: .*"),
        (project, ""),
        (models, "; it holds a model, .*"),
    ):
        before = contents(folder)
        match = f"{folder} is not empty and holds no adaptation{said}; choose another --out$"
        with pytest.raises(UsageError, match=match):
            adapt(checkpoint, text, folder, QUICK, progress=False)
        assert contents(folder) == before


def test_a_folder_of_the_text_is_refused_and_kept(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (corpus / name).write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "link").symlink_to(corpus)
    monkeypatch.chdir(corpus)
    before = contents(tmp_path)
    holds, lies = "the text .* lies in it", "lies in .*would be read as text"
    for source, out, said in (
        (corpus, corpus, holds),
        (corpus / "a.txt", corpus, holds),
        ("*.txt", Path(), holds),
        (f"{corpus}/d*/*.txt", corpus / "deep", holds),
        (f"file://{corpus}", tmp_path / "link", holds),
        (corpus / "deep", corpus, holds),
        (corpus, corpus / "mine", lies),
        (tmp_path / "link", corpus / "deep" / "mine", lies),
        (f"{corpus}/**", corpus / "mine", lies),
    ):
        # With the mark of an adaptation, as where the text was put into the folder of one.
        for marked in (False, True) if out.is_dir() else (False,):
            if marked:
                (out / ".adaptation").touch()
            for sources, plan in (([source], QUICK), ([text], replace(QUICK, also=source))):
                with pytest.raises(UsageError, match=said):
                    adapt(checkpoint, sources, out, plan, progress=False)
            (out / ".adaptation").unlink(missing_ok=True)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    # A pattern that does not go into depth, or not for logs, is not read again.
    for source in (f"{corpus}/*.txt", f"{corpus}/**/*.txt"):
        check_apart(corpus / "mine", [source])


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "pretrain", "export"])
def test_an_interruption_at_any_stage_is_continued(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    plan = replace(QUICK, layers=[*QUICK.layers, Layer("--steps 1", {"steps": 1})])
    place = {
        "prepare": "chronomask.prepare.pipeline._Run.until_annotated",
        "evaluate": "chronomask.evaluate.evaluate.evaluate",
        "pretrain": "chronomask.train.loop.pretrain",
        "export": "chronomask.adapt._export",
    }[stage]

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupt)
        with pytest.raises(KeyboardInterrupt):
            adapt(checkpoint, text, out, plan, progress=False)
    assert out.is_dir()
    (out / ".adaptation").unlink()  # an earlier version made none
    assert adapt(checkpoint, text, out, plan, progress=False).model.is_dir()
    assert (out / "summary.json").is_file()


def test_a_refused_preparation_leaves_no_folder(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    tagger = Layer("--tagger spacy:xx_none", {"tagger": {"kind": "spacy", "name": "xx_none"}})
    plan = replace(QUICK, preparation=[tagger])
    refuse("is not installed", checkpoint, text, tmp_path / "out", plan)
    (tmp_path / "own").mkdir()
    with pytest.raises(UsageError, match="is not installed"):
        adapt(checkpoint, text, tmp_path / "own", plan, progress=False)
    assert list((tmp_path / "own").iterdir()) == []


def test_masking_that_the_text_cannot_have_is_refused_before_anything_is_measured(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    for change, said in (
        ({"masking.strategy": {"kind": "pmi"}}, "chronomask data ngrams"),
        ({"masking.content": {"kind": "ptw"}}, "needs token classes"),
        ({"masking.content": {"kind": "scores"}}, "chronomask data score"),
    ):
        plan = replace(QUICK, layers=[*QUICK.layers, Layer("--set", change)])
        with pytest.raises(UsageError, match=said):
            adapt(checkpoint, text, tmp_path / "out", plan, progress=False)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            ".adaptation", "data",
        ]  # fmt: skip


@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_models_that_predict_no_masked_tokens(
    model_type: str, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(other)
    (other / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    (other / "model.safetensors").write_bytes(b"")
    refuse(f"of type '{model_type}'", other, text, tmp_path / "out", QUICK)


def test_pickles_are_never_read(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(other)
    (other / "config.json").write_text((checkpoint / "config.json").read_text(), encoding="utf-8")
    (other / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    refuse("no .safetensors weights", other, text, tmp_path / "out", QUICK)


def test_a_slow_tokenizer(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\nL\nA\n<mask>", encoding="utf-8")
    EsmTokenizer(vocab_file=str(other / "vocab.txt")).save_pretrained(other)
    (other / "config.json").write_text('{"model_type": "esm"}', encoding="utf-8")
    (other / "model.safetensors").write_bytes(b"")
    refuse("slow tokenizer", other, text, tmp_path / "out", replace(QUICK, new_words=3))
    with pytest.raises(UsageError, match=r"slow tokenizer .*tokenizer\.json"):
        extend_vocabulary(other, ["LALA"], tmp_path / "out")


def test_a_tokenizer_with_more_tokens_than_the_model_has_weights_for(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    AutoModelForMaskedLM.from_pretrained(checkpoint).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["newtoken"])
    tokenizer.save_pretrained(other)
    for plan in (QUICK, replace(QUICK, new_words=3)):
        refuse("resize_token_embeddings", other, text, tmp_path / "out", plan)


def test_a_tokenizer_without_a_mask_token(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    AutoModelForMaskedLM.from_pretrained(checkpoint).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(other)
    refuse("no mask token", other, text, tmp_path / "out", QUICK)


@pytest.mark.parametrize("part", ["train", "measure"])
def test_what_takes_less_memory_is_what_adapt_takes(
    part: str, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on, with no option of another command's."""
    out = tmp_path / "out"
    command = [
        "adapt",
        str(checkpoint),
        str(text),
        "--out",
        str(out),
        "--quiet",
        "--tagger",
        "none",
    ]
    command += ["--rows", "4", "--steps", "2", "--device", "cpu", "--set", "threads=1"]

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        if part == "train":
            patch.setattr(loop, "finish", fail)
        else:
            patch.setattr(MaskedLossTask, "run", fail)
        with pytest.raises(RunError) as refused:
            app(command, standalone_mode=False)
    said = str(refused.value)
    found = re.search(r"(?:set|--set) ([a-z_.]+=\d+)", said)
    assert found is not None, said
    assert found[1] == ("micro_batches=2" if part == "train" else "mlm.batch_rows=1")
    assert "--resume" not in said
    assert ("; then the same command or call goes on" in said) == (part == "train")
    app([*command, "--set", found[1]], standalone_mode=False)
    assert (out / "model" / "config.json").is_file()
    result = json.loads(next((out / "before" / "data").glob("*.json")).read_text())
    assert result["task"] == "mlm"
