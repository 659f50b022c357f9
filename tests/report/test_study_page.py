"""The page of a study carries every number, and says what is not there."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from chronomask.errors import DataError, UsageError
from chronomask.report.page import write_page_of_study
from chronomask.study.command import report
from tests.support.comparisons import AXES, comparison, reach, task
from tests.support.synthetic_runs import write_run


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_and_its_numbers(tmp_path: Path, seeds: int) -> None:
    limits = {"a": (0.01, 0.03), "b & c": None if seeds == 1 else (-0.1, 0.1)}
    tasks = [task("validation_loss", limits, seeds=seeds), task("cola", limits, seeds=seeds)]
    made = comparison(
        tasks, [reach({"a": (0.5, 0.4, 0.6), "b & c": (None, 0.9, None)})], seeds=seeds
    )
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    for name in ("base", "a"):
        for seed in range(seeds):
            write_run(tmp_path / "runs" / name / f"seed-{seed}", name, seed=seed, weighted=True)
    page = write_page_of_study(tmp_path)
    html = page.read_text(encoding="utf-8")
    assert "Made &lt;up&gt;" in html
    assert "Made <up>" not in html
    assert "b &amp; c" in html
    assert "The runs’ logs of “b &amp; c” are not beside this page" in html
    assert "1.50 × 10¹⁰" in html
    assert "src=" not in html
    names = {path.stem for path in (tmp_path / "csv").iterdir()}
    assert names >= {
        "arms",
        "tasks",
        "reach",
        "curve-validation_loss",
        "differences",
        "class-weight",
    }
    for name in names:
        assert f'href="csv/{name}.csv"' in html
    with (tmp_path / "csv" / "tasks.csv").open() as file:
        rows = {(row["task"], row["arm"]): row for row in csv.DictReader(file)}
    assert float(rows["cola", "a"]["difference_high"]) == 0.03
    with (tmp_path / "csv" / "curve-validation_loss.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * seeds * 2
    assert set(AXES) < set(lines[0])
    first = page.read_bytes()
    write_page_of_study(tmp_path)
    assert page.read_bytes() == first


def test_a_folder_without_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no comparison\.json"):
        write_page_of_study(tmp_path)
    (tmp_path / "comparison.json").write_text('{"schema_version": 7}')
    with pytest.raises(DataError, match="schema version 7"):
        write_page_of_study(tmp_path)
    (tmp_path / "comparison.json").write_text('{"schema_ver')
    with pytest.raises(DataError, match=r"cannot be read as JSON: .* chronomask study report"):
        write_page_of_study(tmp_path)


@pytest.mark.parametrize("name", ["x/../../../away", "/away", "..", 't"><script>alert(1)</script>'])
def test_names_that_would_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for place in ("quantity", "task", "folder"):
        made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
        if place == "quantity":
            made["curves"][0]["quantity"] = name
        elif place == "task":
            made["tasks"][0]["task"] = name
        elif "<" in name:
            continue
        else:
            made["arms"][0]["runs"][0]["folder"] = name
        (folder / "comparison.json").write_text(json.dumps(made))
        with pytest.raises(DataError, match=r"a file outside its folder: .* study report"):
            report(folder, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["study"]


@pytest.mark.parametrize("place", ["arms", "tasks", "curves", "reach"])
@pytest.mark.parametrize("value", [5, None, [5], {"a": 5}])
def test_a_comparison_of_other_values_is_refused(tmp_path: Path, place: str, value: Any) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    (tmp_path / "comparison.json").write_text(json.dumps({**made, place: value}))
    with pytest.raises(
        DataError, match=r"cannot be shown \(.*: if it was changed, make it again .* study report"
    ):
        report(tmp_path, tmp_path / "out")


def test_a_task_of_any_name_is_no_script(tmp_path: Path) -> None:
    made = comparison(
        [task("validation_loss", {"a": (0.01, 0.03)}), task("cola", {"a": (0.01, 0.03)})]
    )
    made["tasks"][1]["task"] = made["curves"][0]["quantity"] = 't"><script>alert(1)<script>&'
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    html = report(tmp_path, tmp_path / "out").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert 'id="forest-t---script-alert-1--script--' in html


def test_arms_without_logs_leave_the_colours_of_the_others(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03), "b": (0.01, 0.03)})])
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    for name in ("base", "a", "b"):
        for seed in range(3):
            write_run(tmp_path / "runs" / name / f"seed-{seed}", name, seed=seed)
    before = _colours(write_page_of_study(tmp_path))
    (tmp_path / "runs" / "a" / "seed-1" / "metrics.jsonl").unlink()
    after = _colours(write_page_of_study(tmp_path))
    assert before.keys() == {"base", "a", "b"}
    assert after == {name: before[name] for name in ("base", "b")}


def _colours(page: Path) -> dict[str, str]:
    """The colour of each arm in the legend of a figure from inside the arms."""
    html = page.read_text(encoding="utf-8")
    legend = html[html.index('<section id="predicted-tokens"') :].split("</ul>")[0]
    found = re.findall(r'style="color: (#\w+)"></span>(\w+)<', legend)
    return {name: colour for colour, name in found}


def test_the_best_of_each_column_is_marked(tmp_path: Path) -> None:
    limits = {"a": (0.01, 0.03), "b": (0.2, 0.4)}
    tasks = [task("validation_loss", limits), task("cola", limits)]
    (tmp_path / "comparison.json").write_text(json.dumps(comparison(tasks)))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    overview = html[html.index('<table class="overview">') :].split("</table>")[0]
    rows = [row.split("<td") for row in overview.split("<tr>")[2:]]
    marked = [["best" in cell.split(">")[0] for cell in row[1:]] for row in rows]
    # A low loss is good, and a high score.
    assert marked == [[True, False], [False, False], [False, True]]


def test_the_mean_of_glue_tasks_has_a_column_and_a_best(tmp_path: Path) -> None:
    limits = {"a": (0.01, 0.03), "b": (0.2, 0.4)}
    tasks = [task(name, limits) for name in ("validation_loss", "cola", "rte")]
    tasks[2]["arms"]["b"]["mean"] = 0.5
    (tmp_path / "comparison.json").write_text(json.dumps(comparison(tasks)))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    overview = html[html.index('<table class="overview">') :].split("</table>")[0]
    assert 'GLUE mean<span class="unit">of 2 tasks, ×100</span>' in overview
    last = [row.split("<td")[-1] for row in overview.split("<tr>")[2:]]
    assert [re.findall(r"\d+\.\d", cell) for cell in last] == [["50.0"], ["52.0"], ["65.0"]]
    assert ["best" in cell.split(">")[0] for cell in last] == [False, False, True]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "none", "strength": 1.0}, "constant 0.15, token<"),
        ({"kind": "ptw", "strength": 1.0}, "constant 0.15, ptw, strength 1, token<"),
        ({"kind": "ptw", "strength": 0.25}, "constant 0.15, ptw, strength 0.25, token<"),
        (
            {"kind": "ptw", "strength": {"kind": "linear", "start": 0.0, "end": 1.0}},
            "constant 0.15, ptw, strength linear 0 to 1, token<",
        ),
        ({"kind": "ptw"}, "constant 0.15, ptw, token<"),
    ],
)
def test_the_arms_say_how_strong_their_content_is(
    tmp_path: Path, content: dict[str, object], said: str
) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    arm = made["arms"][1]
    arm["masking"] = {**arm["masking"], "content": content}
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    assert said in write_page_of_study(tmp_path).read_text(encoding="utf-8")
    arm["differs"] = {"averaging.kind": [None, "ema"], "rows_follow_ratio": [False, True]}
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    assert said.replace("<", ", averaging ema, rows follow ratio<") in html
    arm["differs"] = {"masking.content.weights": [None, "those that “base” ended with"]}
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    # An arm that uses no classes has no weights to speak of.
    assert ("ptw, weights: those that “base” ended with, " in html) == (content["kind"] == "ptw")


def test_an_arm_with_a_mixture_says_the_shares_of_its_strategies(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    falls = {"kind": "linear", "start": 1.0, "end": 0.25}
    parts = [
        {"share": falls, "strategy": {"kind": "token"}},
        {"share": 0.5, "strategy": {"kind": "whole_word"}},
    ]
    arm = made["arms"][1]
    arm["masking"] = {**arm["masking"], "strategy": {"kind": "mixed", "parts": parts}}
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    assert "constant 0.15, token linear 1 to 0.25 and whole word 0.5<" in html


def test_single_seeds_are_dots(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    for name, shift in (("base", 0.0), ("a", 0.02)):
        seeds = {str(k): [0.5 + shift + k / 100] for k in range(3)}
        made["tasks"][0]["arms"][name]["by_seed"] = seeds
    pages = {}
    for seeds in (3, 1):
        (tmp_path / "comparison.json").write_text(json.dumps(made))
        pages[seeds] = write_page_of_study(tmp_path).read_text(encoding="utf-8")
        for numbers in made["tasks"][0]["arms"].values():
            numbers["by_seed"] = {"0": [0.5]}
        made["curves"] = []
    forests = {
        k: re.search(r'aria-label="Differences.*?</svg>', page, re.S) for k, page in pages.items()
    }
    dots = {k: found[0].count("<use ") for k, found in forests.items() if found}
    assert dots[3] - dots[1] == 3
    assert "dots are single seeds" in pages[3]


def _yardstick(name: str, part: str, number: int, **losses: float) -> dict[str, Any]:
    arms = {arm: {"mean": loss, "spread": 2**0.5, "seeds": 2} for arm, loss in losses.items()}
    return {"yardstick": name, "part": part, "num_predictions": number, "arms": arms}


def test_the_yardsticks_have_a_table_and_a_file(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    assert 'id="yardsticks"' not in write_page_of_study(tmp_path).read_text(encoding="utf-8")
    assert not (tmp_path / "csv" / "yardsticks.csv").exists()
    made["yardsticks"] = [
        _yardstick("mean", "", 700, base=5.5, a=5.4),
        _yardstick("mean", "content words", 400, base=6.5, a=6.6),
        _yardstick("mean", "NOUN", 300, base=6.4, a=6.3),
        _yardstick("mean", "DET", 50, base=3.1, a=3.2),
        _yardstick("single", "", 224, base=5.1, a=5.1004),
        _yardstick("single", "content words", 90, base=6.0, a=5.9),
        _yardstick("single", "NOUN", 60, base=6.2, a=6.3),
    ]
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    section = html[html.index('<section id="yardsticks"') :].split("</section>")[0]
    main, content, parts = (
        part.split("</table>")[0] for part in section.split('<table class="yard')[1:]
    )
    assert re.findall(r"<th scope=\"col\">([a-z ]+)<span class=\"unit\">([0-9,]+)", main) == [
        ("mean", "700"), ("single mask", "224"), ("content words", "400"),
    ]  # fmt: skip
    cells = re.findall(r'<td class="(best)?"><span class="value">([0-9.]+)', main)
    # Equal as they are written is equal, and the baseline's row comes first.
    assert cells == [
        ("", "5.500"), ("best", "5.100"), ("best", "6.500"),
        ("best", "5.400"), ("best", "5.100"), ("", "6.600"),
    ]  # fmt: skip
    assert "224" not in content
    assert "5.900" in content
    assert "<h3>Parts of speech, mean of the five</h3>" in section
    assert re.findall(r"<th scope=\"col\">([A-Z]+)<span class=\"unit\">([0-9,]+)", parts) == [
        ("DET", "50"), ("NOUN", "300"),
    ]  # fmt: skip
    assert parts.count('class="best"') == 2
    with (tmp_path / "csv" / "yardsticks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    assert rows[-1] == {
        "yardstick": "single", "part": "NOUN", "predictions": "60", "arm": "a", "pre_training_seeds": "2",
        "mean": "6.3", "spread": "1.4142135623730951",
    }  # fmt: skip


def test_the_headline_leads_what_the_study_was_to_decide(tmp_path: Path) -> None:
    tasks = [task(name, {"a": (0.01, 0.03)}) for name in ("validation_loss", "mean_loss", "cola")]
    for one in tasks:
        one["contrasts"] = [
            {
                "arm": "a", "other": "base", "difference": 0.02, "difference_low": 0.01,
                "difference_high": 0.03, "p": 0.01, "p_holm": 0.01, "by_unit": [], "detectable": None,
            }
        ]  # fmt: skip
    made = comparison(tasks) | {"contrasts": [["a", "base"]]}
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
    section = html.split('<section id="contrasts">')[1].split("</section>")[0]
    named = re.findall(r"</th><td>([^<]*)<", section)
    assert named == ["mean loss of five yardsticks", "validation loss", "CoLA"]
    assert section.count(">–</td>") == len(tasks)  # nothing is claimed of what could be seen


def test_the_arms_say_what_their_numbers_are(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    arm = made["arms"][1]
    ratio = {"kind": "cosine_decay", "base": 0.15, "floor": 0.02}
    arm["masking"] = {**arm["masking"], "ratio": ratio}
    for steps in ([2500, 1250], ["2500", "1250"]):  # of a study, and of runs
        arm["differs"] = {"steps": steps, "masking.ratio.base": [0.15, 0.3]}
        (tmp_path / "comparison.json").write_text(json.dumps(made))
        html = write_page_of_study(tmp_path).read_text(encoding="utf-8")
        assert "cosine decay 0.15, floor 0.02, token, steps 1,250<" in html


def test_a_study_can_have_another_title(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    page = report(tmp_path, tmp_path / "out", title="Of winter").read_text(encoding="utf-8")
    assert "Of winter" in page
    assert "Made &lt;up&gt;" not in page
    assert "Made &lt;up&gt;" in report(tmp_path, tmp_path / "out").read_text(encoding="utf-8")


def test_a_comparison_that_lacks_something_is_refused(tmp_path: Path) -> None:
    made = comparison([task("validation_loss", {"a": (0.01, 0.03)})])
    del made["reach"], made["tasks"]
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match="lacks tasks, reach, so it is not whole"):
        write_page_of_study(tmp_path)
