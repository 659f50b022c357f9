import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from chronomask.errors import DataError, UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.report.comparison import read_curves
from chronomask.study.command import report, report_in_words
from tests.support.synthetic_runs import write_run

CSV_NAMES = {
    "arms", "class-loss", "class-weight", "curve-validation_loss", "difference", "differences",
    "final-class-loss", "masking-ratio", "predicted-tokens", "reach", "runs", "tasks", "training-loss",
}  # fmt: skip


@pytest.fixture(scope="module")
def out(four_arms: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    assert report(four_arms, folder, title="Four arms") == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_page_is_one_file_without_requests(page: str) -> None:
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|@import|<script[^>]|<link rel=\"stylesheet|src=", bare)
    urls = set(re.findall(r'href="([^"#][^"]*)"', bare))
    assert all(url.startswith(("data:", "csv/")) for url in urls)


def test_tables_are_named_and_sorted_by_buttons(page: str) -> None:
    boxes = re.findall(r'<div class="scroll"([^>]*)>', page)
    assert boxes
    assert all(
        re.fullmatch(r' role="region" aria-label="[^"]+" tabindex="0"', box) for box in boxes
    )
    assert 'document.createElement("button")' in page  # Space and Enter press it
    assert "heading.tabIndex" not in page
    for direction in ("ascending", "descending"):
        assert f'th[aria-sort="{direction}"] button::before' in page


def test_columns_of_a_table_have_names_of_their_own(page: str) -> None:
    for head in re.findall(r"<thead><tr>(.*?)</tr></thead>", page):
        names = re.findall(r"<th[^>]*>(.*?)</th>", head)
        assert len(names) == len(set(names))


def test_every_panel_is_xml_and_ids_are_unique(page: str) -> None:
    panels = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    # Tokens seen and seconds are multiples of steps here, and would be the same panel again.
    assert len(panels) == 2 + 2 + 1 + 1 + 4 + 2 + 4 + 2 + 2
    for panel in panels:
        root = ElementTree.fromstring(panel)
        assert root.get("aria-label")
        assert root.get("viewBox")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert set(used) <= set(ids)


def test_csv_files_are_linked_and_embedded(page: str, out: Path) -> None:
    written = {path.stem for path in (out / "csv").iterdir()}
    assert written == CSV_NAMES
    links = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]*)" download="(.+?)"', page)
    assert {name for _, name in links} == {f"{name}.csv" for name in CSV_NAMES}
    for encoded, name in links:
        assert base64.b64decode(encoded) == (out / "csv" / name).read_bytes()
        assert f'href="csv/{name}"' in page


def test_csv_numbers_equal_the_results_files(four_arms: list[Path], out: Path) -> None:
    csvs = {name: _read_csv(out / "csv" / f"{name}.csv") for name in CSV_NAMES}
    for folder in four_arms:
        name = json.loads((folder / "summary.json").read_text())["name"]
        metrics, validation = _lines(folder / "metrics.jsonl"), _lines(folder / "validation.jsonl")

        ratio = [row for row in csvs["masking-ratio"] if row["arm"] == name]
        for key in ("step", "progress", "masking_ratio", "masking_ratio_achieved"):
            assert [float(row[key]) for row in ratio] == [line[key] for line in metrics]

        loss = [row for row in csvs["curve-validation_loss"] if row["arm"] == name]
        for key in ("step", "tokens_seen", "masked_tokens", "seconds", "loss", "accuracy"):
            assert [float(row[key]) for row in loss] == [line[key] for line in validation]

        classes = [row for row in csvs["class-loss"] if row["arm"] == name]
        assert {(row["step"], row["class"], float(row["loss"])) for row in classes} == {
            (str(line["step"]), tag, value)
            for line in validation
            for tag, value in line["class_loss"].items()
        }

        weights = [row for row in csvs["class-weight"] if row["arm"] == name]
        assert {(row["step"], row["class"], float(row["weight"])) for row in weights} == {
            (str(line["step"]), tag, value)
            for line in metrics
            for tag, value in line.get("class_weight", {}).items()
        }

        final = {row["class"]: row for row in csvs["final-class-loss"] if row["arm"] == name}
        assert {tag: float(row["loss"]) for tag, row in final.items()} == validation[-1][
            "class_loss"
        ]

        summary = json.loads((folder / "summary.json").read_text())
        for table in ("arms", "runs"):
            arm = next(row for row in csvs[table] if row["arm"] == name)
            for key in ("validation_loss", "validation_accuracy", "masked_tokens", "tokens_seen"):
                assert float(arm[key]) == summary[key]


def test_differences_are_taken_from_the_first_arm(four_arms: list[Path], out: Path) -> None:
    rows = _read_csv(out / "csv" / "difference.csv")
    first, last = (_lines(folder / "validation.jsonl") for folder in (four_arms[0], four_arms[3]))
    gaps = [float(row["loss_minus_first"]) for row in rows if row["arm"] == "MRD + PTW"]
    assert gaps == [b["loss"] - a["loss"] for a, b in zip(first, last, strict=True)]
    assert {row["loss_minus_first"] for row in rows if row["arm"] == "fixed 15 %"} == {"0"}


def test_summary_says_what_one_seed_cannot_show(page: str) -> None:
    assert "4 ways to mask were trained with one seed each for 500 steps" in page
    assert "Every arm was run once, all with seed 0" in page
    assert "not evidence that one way of masking is better" in page
    assert "Content words end up harder to predict than function words" in page


def test_only_differing_config_keys_are_listed(page: str) -> None:
    table = page[page.index("What differs between the arms") :]
    assert "masking.ratio.kind" in table
    assert "masking.content.ema_decay" in table
    assert "mask_replace_prob" not in table


def test_same_input_same_bytes(four_arms: list[Path], tmp_path: Path, page: str) -> None:
    again = report(four_arms, tmp_path / "again", title="Four arms")
    assert again.read_text(encoding="utf-8") == page


def test_a_single_run_without_class_weights(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "fixed 15 %", steps=100)
    page = report([folder], tmp_path / "out").read_text(encoding="utf-8")
    assert "“fixed 15 %” was trained for 100 steps." in page
    assert "it compares nothing" in page
    assert 'id="class-weight"' not in page
    assert 'id="difference"' not in page
    assert "What differs between the arms" not in page


def test_what_else_follows_training_is_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "over time", steps=100, weighted=True)
    masking = MaskingConfig.of(
        {
            "ratio": {"kind": "normal_rows", "mean": {"kind": "linear"}, "std": 0.05},
            "content": {"kind": "ptw", "strength": {"kind": "linear", "start": 0, "end": 1}},
            "strategy": {
                "kind": "mixed",
                "parts": [
                    {
                        "share": {"kind": "linear", "start": 1, "end": 0},
                        "strategy": {"kind": "token"},
                    },
                    {
                        "share": {"kind": "linear", "start": 0, "end": 1},
                        "strategy": {"kind": "span"},
                    },
                ],
            },
        }
    )
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        line
        | masking.in_force(line["progress"])
        | {"causal_share": 1 - line["progress"], "masks_enter": 3}
        for line in lines
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(folder, tmp_path / "out").read_text(encoding="utf-8")
    for words in (
        "Strength of content",
        "Rows of next tokens",
        "Where masked tokens enter",
        "Strategies of over time",
        "Rows of over time",
    ):
        assert words in page
    with (tmp_path / "out" / "csv" / "over-time.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    last, at = lines[-1], str(lines[-1]["step"])
    told = {(r["what"], r["which"]): float(r["value"]) for r in table if r["step"] == at}
    assert told["content_strength", ""] == pytest.approx(last["progress"])
    assert told["causal_share", ""] == pytest.approx(1 - last["progress"])
    assert told["masks_enter", ""] == 3
    assert told["strategy_share", "span"] == pytest.approx(last["progress"])
    assert told["row_ratio", "0.5"] == pytest.approx(0.3 - 0.15 * last["progress"], abs=2e-3)
    ends = [told["row_ratio", q] for q in ("0.05", "0.95")]
    assert ends[1] - ends[0] == pytest.approx(2 * 1.645 * 0.05, rel=0.03)


def test_reference_curves_lie_under_the_loss(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "fixed 15 %", steps=100)
    own = tmp_path / "own.csv"
    own.write_text("name,tokens_seen,loss\nmine,100000,7\nmine,300000,6\nfar,9e12,5\nfar,9e13,4\n")
    page = report(folder, tmp_path / "out", reference=own).read_text(encoding="utf-8")
    assert "Beside runs that were measured before" in page
    assert "because it begins beyond these runs: “far”." in page
    numbers = (tmp_path / "out" / "csv" / "reference.csv").read_text(encoding="utf-8")
    assert "mine,100000,7\nmine,300000,6\nfixed 15 %," in numbers
    own.write_text("name,tokens_seen,loss\nmine,many,7\n")
    with pytest.raises(DataError, match=r"own\.csv line 2: a name, tokens_seen and a loss"):
        report(folder, tmp_path / "out", reference=own)
    with pytest.raises(DataError, match="there is no file shiped: give a CSV file, or shipped"):
        report(folder, tmp_path / "out", reference="shiped")
    shipped = read_curves("shipped")
    assert {len(tokens) for tokens, _ in shipped.values()} == {10, 3}  # a minute had three
    assert all(tokens == sorted(tokens) and min(loss) > 3 for tokens, loss in shipped.values())


def test_the_curve_of_a_report_serves_as_a_reference(tmp_path: Path) -> None:
    numbers = tmp_path / "out" / "csv" / "curve-validation_loss.csv"
    folders = [write_run(tmp_path / f"{k}", "fixed", seed=k, steps=100) for k in (0, 1)]
    for runs, names in ((folders, ["fixed, seed 0", "fixed, seed 1"]), (folders[:1], ["fixed"])):
        report(runs, tmp_path / "out")
        curves = read_curves(str(numbers))
        assert list(curves) == names
        drawn = [float(row["loss"]) for row in _read_csv(numbers)]
        assert [loss for _, losses in curves.values() for loss in losses] == drawn
    with pytest.raises(DataError, match="a name, tokens_seen and a loss"):
        read_curves(str(numbers.with_name("tasks.csv")))


def test_an_unfinished_run_is_marked_and_not_ranked(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", "fixed 15 %", steps=100),
        write_run(tmp_path / "b", "PTW", steps=60, weighted=True, finished=False),
    ]
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7')
    text = report_in_words(folders, tmp_path / "out", "Two")
    assert "PTW (unfinished)" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "“PTW”: the last line of metrics.jsonl is half-written: 1 line left out." in page
    assert "“PTW”: unfinished" in page
    assert '<p class="lead">“fixed 15 %” ended with a validation loss of' in page
    assert {row["arm"] for row in _read_csv(tmp_path / "out" / "csv" / "tasks.csv")} == {
        "fixed 15 %"
    }
    drawn = _read_csv(tmp_path / "out" / "csv" / "curve-validation_loss.csv")
    assert {row["arm"] for row in drawn} == {"fixed 15 %", "PTW"}


def test_a_run_without_validation_or_classes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "bare", steps=20, finished=False)
    (folder / "validation.jsonl").unlink()
    lines = [
        {"step": line["step"], "loss": line["loss"]} for line in _lines(folder / "metrics.jsonl")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report([folder], tmp_path / "out").read_text(encoding="utf-8")
    assert "No validation has been made yet." in page
    assert "<figure>" not in page


def test_different_data_is_pointed_out(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, name, steps=50) for name in ("a", "b")]
    summary = json.loads((folders[1] / "summary.json").read_text())
    summary["data_fingerprint"] = "other"
    (folders[1] / "summary.json").write_text(json.dumps(summary))
    page = report(folders, tmp_path / "out").read_text(encoding="utf-8")
    assert "not trained on the same prepared data" in page
    assert "on the same data" not in page
    assert '<p class="lead">No loss says here which arm is better' in page
    assert "the same predictions for every arm" not in page
    assert "Validation losses lie between" not in page
    assert 'class="best"' not in page


@pytest.mark.parametrize(
    ("second", "shared"),
    [
        ({"initial_weights_sha256": "w", "data_fingerprint": "d"}, True),
        ({"initial_weights_sha256": "v", "data_fingerprint": "d"}, False),
        ({"initial_weights_sha256": "w", "data_fingerprint": "e"}, False),
        ({"data_fingerprint": "d"}, False),
    ],
)
def test_a_shared_start_is_claimed_only_where_it_is_known(
    second: dict[str, str], shared: bool, tmp_path: Path
) -> None:
    starts = ({"initial_weights_sha256": "w", "data_fingerprint": "d"}, second)
    folders = [write_run(tmp_path / n, n, steps=50, weighted=n == "b") for n in ("a", "b")]
    for folder, start in zip(folders, starts, strict=True):
        path = folder / "environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | start))
    page = report(folders, tmp_path / "out").read_text(encoding="utf-8")
    assert ("in the same order from the same initial weights" in page) == shared


def test_no_interval_is_claimed_for_losses_on_different_data(tmp_path: Path) -> None:
    """Several seeds would give differences an interval, and a better arm."""
    folders = []
    for name in ("a", "b"):
        for seed in (0, 1, 2):
            folder = write_run(tmp_path / f"{name}{seed}", name, seed=seed, steps=50)
            summary = json.loads((folder / "summary.json").read_text())
            summary["data_fingerprint"] = name
            (folder / "summary.json").write_text(json.dumps(summary))
            folders.append(folder)
    page = report(folders, tmp_path / "out").read_text(encoding="utf-8")
    assert '<p class="lead">No loss says here which arm is better' in page
    rows = _read_csv(tmp_path / "out" / "csv" / "tasks.csv")
    assert {row["arm"] for row in rows} == {"a", "b"}
    assert all(not row["difference_low"] and not row["p"] for row in rows)


def test_validation_on_other_rows_is_pointed_out(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / n, n, steps=50, weighted=n == "b") for n in ("a", "b")]
    page = report(folders, tmp_path / "one").read_text()
    assert "not validated on the same" not in page
    assert "All arms answer the same test" in page
    lines = _lines(folders[1] / "validation.jsonl")
    fewer = [{**line, "num_predicted": 30} for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in fewer)
    (folders[1] / "validation.jsonl").write_text(text)
    page = report(folders, tmp_path / "two").read_text(encoding="utf-8")
    said = (
        "not validated on the same held-out rows (validation.rows, validation.order): their losses"
    )
    assert f"{said} rest on 30 to " in page
    assert "All arms answer the same test" not in page
    (folders[1] / "validation.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    config = yaml.safe_load((folders[1] / "config.yaml").read_text())
    config["validation"] = config.get("validation", {}) | {"order": None}  # as of a run of now
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(config))
    page = report(folders, tmp_path / "three").read_text(encoding="utf-8")
    assert f"{said} are not those of the same words" in page


def test_several_seeds_of_an_arm_are_one_line(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / f"{name}-{k}", f"{name}, seed {k}", gain=gain + k / 50, seed=k, **options
        )
        for name, gain, options in (
            ("uniform", 0.0, {}),
            ("weighted", 0.6, {"weighted": True}),
        )
        for k in range(3)
    ]
    page = report(folders, tmp_path / "out").read_text(encoding="utf-8")
    assert "2 ways to mask were trained with 3 seeds each" in page
    assert '<p class="lead">“weighted” ended best' in page
    assert "dots single seeds" in page
    assert "Every arm was run once" not in page
    losses = {
        (row["arm"], row["seed"]): float(row["validation_loss"])
        for row in _read_csv(tmp_path / "out" / "csv" / "runs.csv")
    }
    assert len(losses) == 6
    (row,) = [
        row for row in _read_csv(tmp_path / "out" / "csv" / "tasks.csv") if row["arm"] == "weighted"
    ]
    gaps = [losses["weighted", str(k)] - losses["uniform", str(k)] for k in range(3)]
    half = stats.t.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
    assert float(row["difference"]) == pytest.approx(np.mean(gaps))
    assert float(row["difference_low"]) == pytest.approx(np.mean(gaps) - half, rel=0.1)
    curve = _read_csv(tmp_path / "out" / "csv" / "curve-validation_loss.csv")
    assert {row["seed"] for row in curve} == {"0", "1", "2"}


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", '<b onclick="x">&', steps=50)
    page = report([folder], tmp_path / "out").read_text(encoding="utf-8")
    assert "<b onclick" not in page
    for panel in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(panel)


def test_names_keep_their_own_direction(tmp_path: Path) -> None:
    """In a sentence, a name from right to left would take the numbers after it along."""
    names = ("fixed 15 %", "قناع متغير")
    folders = [
        write_run(tmp_path / str(k), name, steps=50, gain=k / 10) for k, name in enumerate(names)
    ]
    page = report(folders, tmp_path / "out").read_text(encoding="utf-8")
    bare = re.sub(r"<title>.*?</title>", "", page)
    assert "“\u2068قناع متغير\u2069”" in bare
    assert "“قناع متغير”" not in bare
    assert "“fixed 15 %”" in bare
    assert {row["arm"] for row in _read_csv(tmp_path / "out" / "csv" / "arms.csv")} == set(names)


def test_long_runs_are_thinned_alike_in_figure_and_csv(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", "long", steps=1000, log_every=1, validate_every=500, weighted=True
    )
    report([folder], tmp_path / "out")
    rows = _read_csv(tmp_path / "out" / "csv" / "masking-ratio.csv")
    assert len(rows) == 400
    assert rows[0]["step"] == "1"
    assert rows[-1]["step"] == "1000"


def test_out_that_is_a_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "fixed 15 %", steps=50)
    (tmp_path / "out").write_text("in the way")
    for name in ("out", "new.html"):
        with pytest.raises(UsageError, match=f"{name}: a report, .* goes into a folder"):
            report([folder], tmp_path / name)
    assert not (tmp_path / "new.html").exists()


def test_arms_table(four_arms: list[Path], tmp_path: Path) -> None:
    *lines, _ = report_in_words(four_arms, tmp_path, "Four").splitlines()
    summary = json.loads((four_arms[3] / "summary.json").read_text())
    assert lines[0].split("  ")[0].strip() == "arm"
    assert lines[4].startswith("MRD + PTW ")
    assert f"{summary['validation_loss']:.4f}" in lines[4]
    assert f"{summary['masked_tokens']:,}" in lines[4]
    assert len({len(line) for line in lines}) == 1
    assert "yardsticks" not in lines[0]  # those runs were made before there were any
    for at, value in ((0, 5.25), (3, None)):
        summary = json.loads((four_arms[at] / "summary.json").read_text())
        changed = tmp_path / f"run{at}"
        shutil.copytree(four_arms[at], changed)
        (changed / "summary.json").write_text(json.dumps(summary | {"validation_mean_loss": value}))
    changed = [tmp_path / "run0", tmp_path / "run3"]
    heading, first, second, _ = report_in_words(changed, tmp_path, "Two").splitlines()
    assert re.split("  +", heading)[1:3] == [
        "mean loss of five yardsticks",
        "validation loss at 15 %",
    ]
    assert re.split("  +", first)[1] == "5.2500"
    assert re.split("  +", second)[1] == "–"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col">mean loss<span class="unit">of five yardsticks</span>' in page
    assert "<td>5.250</td>" in page
    arms = _read_csv(tmp_path / "csv" / "arms.csv")
    assert [row["mean_loss"] for row in arms] == ["5.25", ""]


def test_report_imports_no_training_code() -> None:
    code = (
        "import sys, chronomask.report.page, chronomask.report.figures, chronomask.report.class_figures\n"
        "print([m for m in ('torch', 'transformers', 'spacy', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def _read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
