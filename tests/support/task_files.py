"""Files of every task in one folder, small enough that each task at its defaults is done in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.data.folder import PreparedData
from tests.support.corpus import made_up_text
from tests.support.official_files import sentence, squad_values, write_glue, write_squad

TAGS = {"baco": "NOUN", "difu": "VERB", "gahe": "ADJ", ".": "PUNCT", "limo": "DET"}
"""Words of the treebank and their tags."""


def write_task_files(folder: Path, data: PreparedData) -> None:
    """GLUE, SQuAD, BLiMP and all the others' files, held-out rows and a text, by family."""
    write_glue(folder / "glue")
    asked = [
        ("the film was warm", [("what was warm?", "film")]),
        ("the actor was cold", [("who was cold?", "actor")]),
    ]
    write_squad(folder / "squad", squad_values([asked]), squad_values([asked]))
    write_superglue(folder / "superglue")
    write_squad(folder / "squad", unanswerable(asked), unanswerable(asked), version="2.0")
    (folder / "blimp").mkdir()
    (folder / "blimp" / "order.jsonl").write_text(paradigm("order", "agreement", 0, 4))
    write_babylm(folder / "babylm", [*TAGS])
    (folder / "probe").mkdir()
    for part, number in (("train", 30), ("test", 10)):
        (folder / "probe" / f"xx-ud-{part}.conllu").write_text(treebank(number, seed=number))
    (folder / "ner").mkdir()
    for part, number in (("train", 30), ("dev", 10)):
        (folder / "ner" / f"{part}.conll").write_text(labelled(number, seed=number))
    (folder / "classification").mkdir()
    for part, number in (("train", 30), ("dev", 12)):
        (folder / "classification" / f"{part}.csv").write_text(rated(number))
    write_collection(folder / "retrieval", [*TAGS])
    shutil.copytree(data.path, folder / "intrinsic")
    (folder / "intrinsic" / "text.txt").write_text("\n".join(made_up_text(2)))


def unanswerable(paragraphs: Any) -> Any:
    """SQuAD 2.0: of each paragraph, its question, and the same one without an answer."""
    values = squad_values([paragraphs])
    for paragraph in values["data"][0]["paragraphs"]:
        for question in list(paragraph["qas"]):
            none = {"answers": [], "is_impossible": True, "id": f"{question['id']}-no"}
            paragraph["qas"].append({**question, **none})
    return values


def paradigm(uid: str, term: str, first: int, number: int) -> str:
    """Lines of BLiMP: a sentence of made-up words and its reverse; the fourth pair is no pair."""
    words = " ".join(made_up_text(4)).replace(".", "").split()
    long = "".join(words[:4]).lower()  # a word of several pieces
    lines = []
    for k in range(number):
        at = first + k
        good = " ".join(words[at : at + 3 + k % 4]) + f", {long}."
        bad = good if k == 3 else " ".join(reversed(good.split()))
        pair = {"sentence_good": good, "sentence_bad": bad, "field": "syntax"}
        lines.append(json.dumps({**pair, "linguistics_term": term, "UID": uid, "pairID": str(k)}))
    return "\n".join(lines) + "\n"


def treebank(number: int, seed: int) -> str:
    """Sentences of CoNLL-U, six words each, a tag for every word."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(number):
        words = [*random.choice([*TAGS][:3], 4), "limo", "."]
        for place, word in enumerate(words, 1):
            misc = "SpaceAfter=No" if place == 5 else "_"
            columns = [place, word, "_", TAGS[word], "_", "_", 0, "_", "_", misc]
            out.append("\t".join(map(str, columns)))
        out.append("")
    return "\n".join(out) + "\n"


def labelled(number: int, seed: int) -> str:
    """Sentences of CoNLL-2003's shape: every "baco" is a place, every "difu gahe" a person."""
    random = np.random.default_rng(seed)
    lines = ["-DOCSTART- -X- O O", ""]
    for _ in range(number):
        for word in random.choice(["baco", "limo", "difu gahe"], 4):
            marks = {"baco": ["B-LOC"], "limo": ["O"], "difu gahe": ["B-PER", "I-PER"]}[word]
            pairs = zip(word.split(), marks, strict=True)
            lines += [f"{piece} NN I-NP {mark}" for piece, mark in pairs]
        lines.append("")
    return "\n".join(lines)


def rated(number: int) -> str:
    """Sentences as .csv, of three classes that their middle word tells."""
    words = {"cold": "bad", "warm": "good", "film": "none"}
    lines = ["label,text"]
    for k in range(number):
        word, label = [*words.items()][k % 3]
        lines.append(f'{label},"the actor was, {word}"')
    return "\n".join(lines) + "\n"


def write_collection(
    folder: Path, words: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """A folder in BEIR's format; documents, queries and judgements, of the queries that are there.

    Two documents are the same, one is empty, one has a query's id; one query has no judgements, one that is
    judged is missing, and so is a judged document.
    """
    random = np.random.default_rng(0)
    corpus = {f"d{k}": " ".join(random.choice(words, 3 + k % 9)) for k in range(24)}
    corpus |= {"d30": corpus["d23"], "d31": "", "q1": corpus["d22"]}
    queries = {f"q{k}": " ".join(random.choice(words, 4)) for k in range(5)}
    judged = {f"q{k}": {f"d{(k * 5 + n) % 24}": n % 3 for n in range(4)} for k in range(4)}
    judged["q1"] |= {"d99": 2, "d3": 1}
    (folder / "qrels").mkdir(parents=True)
    lines = [
        {"_id": name, "title": text[:5], "text": text[5:].strip(), "metadata": {}}
        for name, text in corpus.items()
    ]
    corpus = {name: f"{text[:5]} {text[5:].strip()}".strip() for name, text in corpus.items()}
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = [json.dumps({"_id": name, "text": text}) for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(asked) + "\n")
    rows = [(q, d, score) for q, found in judged.items() for d, score in found.items()]
    table = [("query-id", "corpus-id", "score"), *rows, ("q9", "d1", 1)]
    (folder / "qrels" / "test.tsv").write_text("\n".join("\t".join(map(str, r)) for r in table))
    return corpus, queries, judged


def superglue_lines(number: int) -> dict[str, list[dict[str, Any]]]:
    """Examples of SuperGLUE's small tasks by folder, with the originals' keys and kinds of label."""
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in SUPERGLUE}
    for k in range(number):
        a, b = sentence(k, k % 2 > 0), sentence(k + 1, k % 2 > 0)
        yes = bool(k % 2)
        made["BoolQ"].append({"question": a, "passage": b, "idx": k, "label": yes})
        nli = {"premise": a, "hypothesis": b, "idx": k}
        label = ("entailment", "contradiction", "neutral")[k % 3]
        made["CB"].append({**nli, "label": label})
        made["RTE"].append({**nli, "label": ("entailment", "not_entailment")[k % 2]})
        choices = {"choice1": sentence(k, not yes), "choice2": sentence(k, yes)}
        asked = {"question": ("cause", "effect")[k % 3 % 2], "idx": k, "label": int(yes)}
        made["COPA"].append({"premise": a, **choices, **asked})
        word = {"word": "film", "idx": k, "label": yes, "version": 1.1}
        one, two = f"{a} film was", f"a film {b}"
        places = {"start1": len(a) + 1, "end1": len(a) + 5, "start2": 2, "end2": 6}
        made["WiC"].append({**word, "sentence1": one, "sentence2": two, **places})
        target = {
            "span1_text": "the actor",
            "span1_index": 0,
            "span2_text": "warm",
            "span2_index": 3,
        }
        made["WSC"].append(
            {"text": f"the actor was warm, {a}", "target": target, "idx": k, "label": yes}
        )
    return made


SUPERGLUE = ("BoolQ", "CB", "RTE", "COPA", "WiC", "WSC")


def write_superglue(folder: Path, number: int = 12) -> None:
    """The six folders, each with its two files."""
    for name, lines in superglue_lines(number).items():
        (folder / name).mkdir(parents=True)
        for part, size in (("train", number), ("val", 6)):
            text = "\n".join(json.dumps(line) for line in lines[:size])
            (folder / name / f"{part}.jsonl").write_text(text + "\n")


def babylm_lines(words: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Lines of BabyLM's zero-shot sets by file, with the originals' keys; sizes differ between files."""
    random = np.random.default_rng(3)

    def text(length: int) -> str:
        return " ".join(random.choice(words, length))

    made: dict[str, list[dict[str, Any]]] = {}
    for name, number in (("hypernym", 4), ("turn_taking", 2)):
        pairs = [{"sentence_good": text(3), "sentence_bad": text(4)} for _ in range(number)]
        made[f"supplement_filtered/{name}.jsonl"] = pairs
    for domain, number in (("social-relations", 3), ("spatial-relations", 1)):
        about = {"Domain": domain, "ContextType": "direct", "ContextDiff": "antonym"}
        items = [
            {f"{kind}{k}": text(3) + "." for kind in ("Context", "Target") for k in (1, 2)} | about
            for _ in range(number)
        ]
        swaps = {"Context1": "Context2", "Target1": "Target2"}
        both = swaps | {value: key for key, value in swaps.items()}
        swapped = [{both.get(key, key): value for key, value in item.items()} for item in items]
        made[f"ewok_filtered/{domain}.jsonl"] = [*items, *swapped]
    for split, operations in (("regular", [0, 0, 1]), ("ambiref", [0, 2, 2, 2])):
        made[f"entity_tracking/{split}.jsonl"] = [
            {
                "input_prefix": f"{text(4)}.",
                "options": [f" {text(2)}" for _ in range(3)],
                "numops": n,
            }
            for n in operations
        ]
    return made


def write_babylm(folder: Path, words: Sequence[str]) -> None:
    """The three folders of BabyLM's ``full_eval`` that are read."""
    for name, lines in babylm_lines(words).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
