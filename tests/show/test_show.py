"""The command's whole way: terminal, page, and a clear refusal of everything that cannot be shown."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.config_layers import Layer
from chronomask.data.folder import PreparedData
from chronomask.data.ngrams import add_ngrams, find_ngrams
from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.prepare.config import NoTagger
from chronomask.recipes import find_recipe
from chronomask.show.request import Request, check
from chronomask.show.show import inspect_masking, inspect_text
from chronomask.show.terminal import rows_as_text
from chronomask.train.config import RunConfig
from chronomask.types import UPOS_CLASSES
from tests.support.fixed_tagger import stand_in_for_english
from tests.support.sample_text import TEXT

VOID = {"meta", "link", "br", "line", "polyline", "circle", "img", "hr", "input"}


class Checker(HTMLParser):
    """Every element is closed in order; nothing is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("script", "iframe", "object")
        assert not (values.get("src") or "").strip()
        if tag == "link":
            assert values["href"] == "data:,"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def two_configs(tmp_path: Path) -> tuple[Path, ...]:
    run = "data: x\nsteps: 5\nmasking:\n  ratio: {kind: linear}\n  content: {kind: ptw_faithful}\n"
    alone = "ratio: {kind: constant, base: 0.4}\nmask_replace_prob: 0.0\nrandom_replace_prob: 1.0\n"
    return write(tmp_path / "run <a>.yaml", run), write(tmp_path / "alone.yaml", alone)


def test_terminal_is_plain_without_colour_and_marks_every_kind() -> None:
    plain = inspect_masking(Request(text=TEXT, changes=(Layer.of_override("ratio.end=0.6"),)))
    assert "\x1b" not in plain
    assert re.search(r"\[\w+\]", plain)
    assert "→" in plain
    assert "progress 0.5: asked" in plain
    assert "illustrative" in plain
    coloured = inspect_masking(
        Request(text=TEXT, changes=(Layer.of_override("ratio.end=0.6"),)), colour=True
    )
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_page_is_well_formed_escaped_and_self_contained(
    tmp_path: Path, two_configs: tuple[Path, ...]
) -> None:
    request = Request(text=TEXT, configs=two_configs, progress="0,1")
    said = inspect_masking(request, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert said.endswith(f"page: {tmp_path / 'page.html'}")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert "<b>" not in page.replace("<b style", "")
    assert "run <a>" not in page
    assert "run <a>" in checker.words
    assert "http" not in re.sub(r'href="https://arxiv.org/\S+"|http://www.w3.org/\S+', "", page)
    assert page.count('<article class="card moment">') == 4
    assert page.count("<h4>Class weights</h4>") == 2
    assert "arXiv" in page or "arxiv.org/abs/2208.10806" in page
    assert page.count('<mark class="random') > 5


def test_a_folder_gets_a_page_of_its_own(tmp_path: Path) -> None:
    inspect_masking(Request(text="Some words.", progress="1"), tmp_path / "new")
    assert (tmp_path / "new" / "inspect.html").is_file()


@pytest.mark.parametrize("colour", [False, True])
def test_tokens_do_not_act_on_a_terminal(
    tiny_data: PreparedData, tmp_path: Path, colour: bool
) -> None:
    """The vocabulary is its maker's."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data.path, folder)
    file = folder / "tokenizer" / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {
        token if token.startswith("[") else f"{token}\x1b]0;x\x07": number
        for token, number in vocabulary.items()
    }
    file.write_text(json.dumps(values))
    data = PreparedData(folder, tiny_data.manifest)
    shown = rows_as_text(data, "train", 0, 2, colour=colour)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\\x1b]0;x\\x07" in text
    assert text.replace("\n", "").isprintable()


def test_rows_of_data_and_their_tokenizer(tiny_data: PreparedData) -> None:
    shown = inspect_masking(Request(data=tiny_data.path, rows=2, progress="0.2"))
    assert "words of several tokens" in shown
    many = inspect_masking(Request(data=tiny_data.path, rows=1000, progress="0.2"))
    assert "note: 32 of the 1000 rows" in many
    text = inspect_masking(Request(text=TEXT, data=tiny_data.path, progress="0.2"))
    assert "model" in re.sub(r"[\[\]]", "", text)


def test_a_run_shows_the_rows_of_its_own_data(run_folder: Path, tiny_data: PreparedData) -> None:
    asked = Request(run=run_folder, rows=1, progress="0.9")
    with pytest.raises(UsageError, match=r"rows of .* cannot be shown .*; give a text, or --data"):
        check(asked)
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("somewhere", str(tiny_data.path)))
    assert check(asked).data == tiny_data.path
    assert inspect_masking(asked) == inspect_masking(
        Request(run=run_folder, data=tiny_data.path, rows=1, progress="0.9")
    )


def test_rows_of_a_mixture_say_of_which_part_they_are(
    run_folder: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    second = shutil.copytree(tiny_data.path, tmp_path / "second")
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("somewhere", f"[{tiny_data.path}, {second}]"))
    asked = Request(run=run_folder, rows=1, progress="0.9")
    said = (
        f"note: these rows are of {tiny_data.path}, the first of the 2 data sets that the run reads"
    )
    assert said in inspect_masking(check(asked))
    assert "these rows are of" not in inspect_masking(check(replace(asked, data=second)))


def test_a_run_of_another_type_has_no_sizes_of_the_default_model(run_folder: Path) -> None:
    config = run_folder / "config.yaml"
    values = RunConfig.load(config).to_dict()
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    values["model"] = {"kind": "config", "model_type": "distilbert", "overrides": sizes}
    config.write_text(yaml.safe_dump(values))
    assert "my run" in inspect_masking(Request(text=TEXT, run=run_folder, progress="0.9"))
    beside = Request(text=TEXT, configs=(config,), progress="0.9")
    assert "words of several tokens" in inspect_masking(beside)


def test_a_text_is_read_as_the_data_of_the_run_were(
    run_folder: Path, tiny_data: PreparedData
) -> None:
    alone = inspect_masking(Request(text=TEXT, run=run_folder, progress="0.9"))
    assert "note: the data of my run are not where it looks for them" in alone
    assert "words of several tokens: 0.0 %" in alone
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("somewhere", str(tiny_data.path)))
    shown = inspect_masking(Request(text=TEXT, run=run_folder, progress="0.9"))
    by_hand = Request(text=TEXT, run=run_folder, data=tiny_data.path, progress="0.9")
    assert shown == inspect_masking(by_hand)
    assert "words of several tokens: 0.0 %" not in shown
    assert str(inspect_text(TEXT, run=run_folder, progress=[0.9])) == shown
    assert str(inspect_text(TEXT, run=run_folder, progress=0.9)) == shown


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": TEXT, "rows": 3}, "--rows 3: a text is one row"),
        ({"data": Path("data"), "tokenizer": Path("t")}, "--tokenizer t: .* are tokens already"),
    ],
)
def test_an_option_without_effect_is_refused(values: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(Request(**values))


@pytest.mark.parametrize("name", ["x.txt", "x.pdf", "there"])
def test_a_page_is_not_written_under_the_name_of_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("a file")
    refused = CliRunner().invoke(app, ["inspect", "Some words.", "--out", name])
    assert isinstance(refused.exception, UsageError)
    assert refused.stdout == ""
    ways = re.search(r"such as (\S+), or a folder", str(refused.exception))
    assert ways is not None
    assert CliRunner().invoke(app, ["inspect", "Some words.", "--out", ways[1]]).exit_code == 0
    assert Path(ways[1]).is_file()
    assert not Path("x.txt").exists()


def test_run_gives_config_and_weights(run_folder: Path) -> None:
    shown = inspect_masking(Request(text=TEXT, run=run_folder, progress="1"))
    assert "my run   constant (base 0.3)" in shown
    assert "learnt by run my run, logged at progress 0.9" in shown
    changed = inspect_masking(
        Request(
            text=TEXT,
            run=run_folder,
            progress="1",
            changes=(Layer.of_override("masking.ratio.base=0.5"),),
        )
    )
    assert "asked 50.0 %" in changed


def test_weights_of_a_run_are_shown_at_the_strength_of_the_moment(run_folder: Path) -> None:
    content = {"kind": "ptw", "strength": {"kind": "linear", "start": 0, "end": 0.5}}
    picture = inspect_text(TEXT, {"content": content}, run=run_folder, progress=(0, 1))
    first, last = (moment.weights for moment in picture.views[0].moments)
    assert first is not None
    assert last is not None
    assert set(first.values.values()) == {1.0}
    logged = {name: 0.1 + 0.8 * 0.9 * k / 17 for k, name in enumerate(UPOS_CLASSES)}
    assert last.values == pytest.approx({name: w**0.5 for name, w in logged.items()})


def test_long_text_is_cut_with_a_note(tmp_path: Path) -> None:
    file = write(tmp_path / "long.txt", "word " * 2000)
    shown = inspect_masking(Request(file=file, progress="0"))
    assert "note: only the first 3,994 of 10,000 characters" in shown


def test_text_runs_in_the_direction_of_its_script(tmp_path: Path) -> None:
    """Class names and special tokens do not decide it: they have a direction of their own."""
    picture = inspect_text("12 \u0643\u062a\u0627\u0628\u0627.", progress=[0])
    page = picture.save(tmp_path / "a.html").read_text(encoding="utf-8")
    for html in (page, picture._repr_html_()):
        assert re.findall(r'class="prose[^>]*>', html)
        assert all('dir="auto"' in start for start in re.findall(r'class="prose[^>]*>', html))
        inner = re.findall(r'<small[^>]*>|<span class="special"[^>]*>', html)
        assert all('dir="ltr"' in start for start in inner)


def test_text_of_another_script_is_shown_with_a_note(tiny_data: PreparedData) -> None:
    greek = "Καλημέρα σας, τι κάνετε;"
    assert "note: words and classes are those of an English tagger" in str(
        inspect_text(greek, progress=[0])
    )
    assert "note:" not in str(inspect_text(greek, progress=[0], data=tiny_data.path))
    assert "note:" not in str(inspect_text("Good morning, how are you?", progress=[0]))


def test_same_request_same_picture() -> None:
    request = Request(text=TEXT, progress="0.3")
    assert inspect_masking(request) == inspect_masking(request)
    assert inspect_masking(request) != inspect_masking(Request(text=TEXT, progress="0.3", seed=1))


def test_a_folder_that_is_known_is_no_text(tiny_data: PreparedData, tmp_path: Path) -> None:
    named = Request(text=str(tiny_data.path))
    with pytest.raises(UsageError, match=r"is a folder, not a text; it is prepared data, .*--data"):
        inspect_masking(named)
    (tmp_path / "cat").mkdir()
    assert inspect_masking(Request(text=str(tmp_path / "cat")))  # any other is a word


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nothing to show"),
        ({"text": " \n"}, "is empty"),
        ({"text": "a", "file": Path("b.txt")}, "not both"),
        ({"text": __file__}, f"is a file: --file {__file__} shows the text in it"),
        ({"file": Path("absent.txt")}, r"absent\.txt does not exist"),
        ({"text": "a", "progress": "0,2"}, "'2' is not a number between 0 and 1"),
        ({"text": "a", "progress": "half"}, "'half' is not a number"),
        ({"text": "a", "progress": "nan"}, "'nan' is not a number"),
        ({"text": "a", "progress": ",".join(f"0.{k}1" for k in range(9))}, "at most 8 moments"),
        ({"text": "a", "configs": (Path("no.yaml"),)}, r"no\.yaml does not exist"),
        ({"text": "a", "configs": (Path("x"),) * 7}, "at most 6"),
        (
            {"text": "a", "changes": (Layer.of_override("ratoi.kind=linear"),)},
            "did you mean 'ratio'",
        ),
        (
            {"text": "a", "changes": (Layer.of_override("ratio.kind=linaer"),)},
            "did you mean 'linear'",
        ),
        ({"text": "a", "tokenizer": Path("nowhere")}, "tokenizer folder nowhere does not exist"),
        ({"data": Path("nowhere")}, "not a folder of prepared data"),
        ({"text": "a", "run": Path("nowhere")}, "run folder nowhere does not exist"),
    ],
)
def test_refusals(values: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inspect_masking(Request(**values))


def test_collocations_are_shown_in_rows_alone(tiny_data: PreparedData, tmp_path: Path) -> None:
    """A text does not mark them, and what is advised shows them."""
    data = PreparedData.open(shutil.copytree(tiny_data.path, tmp_path / "data"))
    add_ngrams(data, find_ngrams(data.split("train"), min_count=2, min_pmi=0.1, progress=False))
    pmi = Request(configs=(find_recipe("arms/pmi"),), data=data.path, progress="0.5")
    for show in (
        lambda: inspect_masking(replace(pmi, text=TEXT)),
        lambda: inspect_masking(replace(pmi, text=TEXT, data=None)),
        lambda: inspect_text(TEXT, "arms/pmi", data=data.path),
    ):
        with pytest.raises(UsageError, match=r"leave out the text, .* --data FOLDER --rows 1 "):
            show()
    assert "pmi" in inspect_masking(replace(pmi, rows=1))


def test_refusals_of_files(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt, line 1: byte 0xe9 is not UTF-8: convert"):
        inspect_masking(Request(file=tmp_path / "latin.txt"))
    with pytest.raises(UsageError, match="is a folder: name a file in it"):
        inspect_masking(Request(file=tmp_path))
    bad = write(tmp_path / "bad.yaml", "masking: {ratio: {kind: cosine_dekay}}\nsteps: 3\n")
    with pytest.raises(UsageError, match="did you mean 'cosine_decay'"):
        inspect_masking(Request(text="a", configs=(bad,)))
    typo = write(tmp_path / "typo.yaml", "ratoi: {kind: linear}\n")
    with pytest.raises(UsageError, match="did you mean 'ratio'"):
        inspect_masking(Request(text="a", configs=(typo,)))
    with pytest.raises(ChronomaskError, match="cannot be used as a folder"):
        inspect_masking(Request(text="a"), bad / "page.html")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write(folder / "tokenizer.json", "{}")
    with pytest.raises(DataError, match="cannot be opened"):
        inspect_masking(Request(text="a", tokenizer=folder))


def test_classes_are_needed_for_ptw(
    tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    monkeypatch.setattr(PreparedData, "class_names", ("none",))
    with pytest.raises(UsageError, match="needs token classes"):
        inspect_masking(Request(data=tiny_data.path))
    stand_in_for_english(monkeypatch, NoTagger())
    with pytest.raises(UsageError, match="needs token classes"):
        inspect_masking(Request(text="a"))
    shown = inspect_masking(
        Request(text="a b", changes=(Layer.of_override("content.kind=none"),)), out
    )
    assert "weight" not in shown
    assert "punctuation and the rest" not in out.read_text(encoding="utf-8")


def test_without_spacy_words_have_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chronomask.show.request.find_spec", lambda _: None)
    shown = inspect_text("What a model reads, and what it must guess.").as_text(colour=False)
    assert "words are shown without classes" in shown
    assert "pip install 'chronomask[prepare]'" in shown
    assert "0.30 to 0.15" in shown
    assert "ptw" not in shown


def test_a_run_must_have_logged_weights(run_folder: Path) -> None:
    metrics = run_folder / "metrics.jsonl"
    write(metrics, '{"step": 1, "progress": 0.5, "class_weight": {"none": 0.5}}\n')
    with pytest.raises(UsageError, match="no weights of the classes shown"):
        inspect_masking(Request(text="a", run=run_folder))
    write(metrics, "")
    with pytest.raises(DataError, match="has not logged a step"):
        inspect_masking(Request(text="a", run=run_folder))


def test_the_command_just_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the bundled tagger itself
    result = CliRunner().invoke(app, ["inspect", "The quick brown fox jumps over the lazy dog."])
    assert result.exit_code == 0
    assert "\nADJ" in result.output
    assert "\nNOUN" in result.output
    assert "\x1b" not in result.output


def test_a_text_in_a_notebook_is_a_fragment_of_its_own() -> None:
    picture = inspect_text(
        TEXT, {"ratio": {"kind": "linear", "start": 0.6}, "content": {"kind": "ptw"}}
    )
    html = picture._repr_html_()
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    name = re.match(r'\s*<div id="(chronomask-[0-9a-f]{12})">', html)
    assert name is not None
    style = html.split("<style>")[1].split("</style>")[0]
    rules = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    selectors = [part for rule in rules.split("}") for part in rule.split("{")[0].split(",")]
    scoped = [selector.strip() for selector in selectors if selector.strip()]
    assert len(scoped) > 20
    assert all(selector.startswith(f"#{name[1]}") for selector in scoped)
    assert not re.search("http|url\\(|@import|<script", html)
    assert "<b>" not in html
    assert checker.words.count("% masked:") == 3
    assert html.count('<mark class="random') > 1  # beside the legend's
    assert "At the end of training" in checker.words
    other = inspect_text(TEXT, {"ratio": {"kind": "constant", "base": 0.2}})
    assert name[1] not in other._repr_html_()
    assert html == inspect_text(TEXT, picture.views[0].config)._repr_html_()


def test_a_text_prints_as_the_command_does(tmp_path: Path, run_folder: Path) -> None:
    printed = inspect_masking(Request(text=TEXT, progress="0,1", seed=3))
    picture = inspect_text(TEXT, progress=(1, 0), seed=3)
    assert str(picture) == repr(picture) == printed
    assert "\x1b[" in picture.as_text(colour=True)
    page = picture.save(tmp_path / "page.html")
    inspect_masking(Request(text=TEXT, progress="0,1", seed=3), tmp_path / "own.html")
    assert page.read_bytes() == (tmp_path / "own.html").read_bytes()
    by_run = inspect_masking(Request(text=TEXT, run=run_folder, progress="1"))
    assert str(inspect_text(TEXT, run=run_folder, progress=[1.0])) == by_run
    config = write(tmp_path / "own.yaml", "ratio: {kind: constant, base: 0.3}\n")
    by_file = inspect_masking(Request(text=TEXT, configs=(config,), progress="0"))
    assert str(inspect_text(TEXT, str(config), progress=[0])) == by_file


def test_a_text_is_cut_by_a_tokenizer_or_its_folder(
    tiny_tokenizer: Path, tiny_data: PreparedData
) -> None:
    opened = AutoTokenizer.from_pretrained(tiny_tokenizer)
    by_folder = inspect_text(TEXT, tokenizer=tiny_tokenizer, progress=[0.5])
    assert str(inspect_text(TEXT, tokenizer=str(tiny_tokenizer), progress=[0.5])) == str(by_folder)
    assert str(inspect_text(TEXT, tokenizer=opened, progress=[0.5])) == str(by_folder)
    assert (by_folder.subject.rows.word_id[0][1:] == by_folder.subject.rows.word_id[0][:-1]).any()
    by_data = inspect_text(TEXT, data=tiny_data.path, progress=[0.5])
    assert str(by_data) == str(by_folder)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "the text is ''; give a string of at least one word"),
        (5, {}, "the text is 5"),
        ("Words.", {"progress": [2]}, "2 is not a number between 0 and 1"),
        ("Words.", {"progress": []}, "at least one moment"),
        ("Words.", {"masking": 5}, "5 is not a MaskingConfig"),
        ("Words.", {"masking": {"ratoi": 1}}, r"did you mean 'ratio'\?"),
        ("Words.", {"tokenizer": object()}, "give a fast tokenizer of transformers"),
        ("Words.", {"run": "absent"}, "run folder absent does not exist"),
    ],
)
def test_texts_that_cannot_be_shown_are_refused(
    text: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        inspect_text(text, **options)


def test_what_follows_progress_is_shown_at_each_moment() -> None:
    masking = {
        "ratio": {"kind": "uniform_rows", "high": {"kind": "linear", "start": 1.0, "end": 0.2}},
        "content": {"kind": "ptw", "strength": {"kind": "linear", "start": 0, "end": 0.5}},
        "strategy": {
            "kind": "phased",
            "phases": [
                {"until": 0.4, "strategy": {"kind": "token"}},
                {"until": 1, "strategy": {"kind": "span"}},
            ],
        },
        "mask_replace_prob": {"kind": "linear", "start": 0.8, "end": 0.9},
    }
    picture = inspect_text(TEXT, masking, progress=(0, 0.5, 1))
    text, page = str(picture), picture._repr_html_()
    assert "strength of content at progress 0, 0.5, 1: 0; 0.25; 0.5" in text
    assert "strategy at progress 0, 0.5, 1: token; span (stop_prob 0.2, max_words 10); span" in text
    assert (
        "nine tenths of rows at progress 0, 0.5, 1: 5 % to 95 %; 3 % to 57 %; 1 % to 19 %" in text
    )
    assert "at progress 0, 0.5, 1: 80 %, 10 %; 85 %, 10 %; 90 %, 10 %" in text
    plain = str(inspect_text(TEXT, {"content": {"kind": "ptw"}}, progress=(0, 1)))
    assert "strength of content" not in plain
    assert "next tokens" not in plain
    causal = str(inspect_text(TEXT, "arms/causal-first", progress=(0, 0.5)))
    assert "rows of next tokens at progress 0, 0.5: 1; 0" in causal
    late = str(inspect_text(TEXT, find_recipe("arms/late-masks"), progress=(0, 0.9)))
    diffusion = inspect_text(TEXT, "arms/diffusion", progress=(0,)).views[0].summary
    assert "losses weighed by inverse_ratio (least_ratio 0.001), per token" in diffusion
    hybrid = {"objective": {"kind": "hybrid", "causal": 0.25}, "masking": masking}
    assert "rows of next tokens at progress 0: 0.25" in str(
        inspect_text(TEXT, hybrid, progress=(0,))
    )
    unsure = str(inspect_text(TEXT, "arms/model-scores", progress=(0,)))
    assert "scores, which the model makes in training, are all alike here" in unsure
    assert (
        "skipped by masked tokens at progress 0, 0.9: 50 % of the layers; 0 % of the layers" in late
    )
    assert page is not None
    weights = [view.moments[-1].weights for view in picture.views]
    assert weights[0] is not None
    whole = inspect_text(TEXT, {"content": {"kind": "ptw", "strength": 1}}, progress=(1,)).views[0]
    assert whole.moments[0].weights is not None
    full, half = whole.moments[0].weights.values, weights[0].values
    assert half["NOUN"] == pytest.approx(full["NOUN"] ** 0.5)


def test_what_a_run_has_beside_masking_is_changed_like_masking() -> None:
    late = find_recipe("arms/late-masks")
    changes = ["late_masks.layer=2", "objective={kind: hybrid, causal: 0.25}", "ratio.end=0.4"]
    request = Request(text=TEXT, configs=(late,), progress="1")
    text = inspect_masking(replace(request, changes=tuple(map(Layer.of_override, changes))))
    assert "skipped by masked tokens at progress 1: 2 layers" in text
    assert "rows of next tokens at progress 1: 0.25" in text
    assert "asked 40.0 %" in text
    for change, said in (
        ("objective.kind=hybrit", "did you mean 'hybrid'"),
        ("late_masks.layer=-1", "late_masks.layer"),
        ("steps=7", "unknown key 'steps'"),
    ):
        with pytest.raises(UsageError, match=said):
            inspect_masking(replace(request, changes=(Layer.of_override(change),)))


@pytest.mark.parametrize("text", ["caf\udce9 is open", "half \ud83d of it"])
def test_bytes_that_are_not_utf_8_are_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"the text has '\\ud.{3}' at character [46], .* as UTF-8"):
        inspect_text(text)
    with pytest.raises(UsageError, match="at character"):
        inspect_masking(Request(text=text))
