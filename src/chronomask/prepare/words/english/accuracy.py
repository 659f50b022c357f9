"""How often a part-of-speech tagger is right: universal tags against CoNLL-U, on gold tokens.

The words of the file are given to the tagger as they stand, so that the figure is about tags and not
about tokenisation. From a shell::

    python -m chronomask.prepare.words.english.accuracy en_ewt-ud-test.conllu.gz
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chronomask.conllu import Sentence, sentences
from chronomask.errors import ChronomaskError, UsageError, nearest, need
from chronomask.prepare.words.spacy_tagger import bundled_folder
from chronomask.text_files import read_lines
from chronomask.types import UPOS

if TYPE_CHECKING:
    from spacy.language import Language

BUNDLED_TAGGER = "english_tagger"
"""Name of the bundled model."""

_NOT_FOR_TAGS = ("parser", "ner", "lemmatizer", "senter", "entity_linker", "textcat")


@dataclass(frozen=True, slots=True)
class TagScore:
    """Counts of one tag: words carrying it in the file, predicted words, words where both agree."""

    gold: int
    predicted: int
    correct: int

    @property
    def recall(self) -> float | None:
        """Share of the tag's gold words found; None when the file has none."""
        return self.correct / self.gold if self.gold else None

    @property
    def precision(self) -> float | None:
        """Share of the tag's predictions that are right; None when it was never predicted."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True, slots=True)
class TaggerAccuracy:
    """Result of `tagger_accuracy`. `words_per_second` is per CPU second, tagging only."""

    tagger: str
    num_sentences: int
    num_words: int
    num_correct: int
    words_per_second: float
    per_tag: dict[str, TagScore]

    @property
    def accuracy(self) -> float:
        """Share of words whose predicted universal tag is the gold one, in [0, 1]."""
        return self.num_correct / self.num_words


def read_conllu(path: str | Path) -> Iterator[Sentence]:
    """Yield the sentences of a CoNLL-U file, read as :func:`chronomask.text_files.read_lines` reads it.

    A word is a syntactic word: the line `3-4 don't` of a multiword token only says whether a space
    follows its last word (none follows the others), and empty nodes (`8.1`) are passed over.
    Format: https://universaldependencies.org/format.html.

    Raises:
        UsageError: there is no such file.
        DataError: a malformed line, a tag outside the 17 of `UPOS`, a damaged archive, text that is
            not UTF-8, or no sentence at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"CoNLL-U file {path} does not exist")
    yield from sentences(read_lines(path), path)


def load_tagger(name: str = BUNDLED_TAGGER) -> Language:
    """Return a spaCy pipeline that sets `token.pos_`: the bundled one, or any installed one.

    Components that do not bear on part-of-speech tags (parser, entities, lemmas) are left out.

    Raises:
        UsageError: no such pipeline is installed.
    """
    spacy = need("spacy", "prepare", "a spaCy tagger")
    place = bundled_folder() if name == BUNDLED_TAGGER else name
    try:
        return spacy.load(place, exclude=_NOT_FOR_TAGS)
    except OSError:
        known = [BUNDLED_TAGGER, *spacy.util.get_installed_models()]
        raise UsageError(f"no spaCy pipeline {name!r}: {nearest(name, known)}") from None


def tagger_accuracy(
    sentences: Iterable[Sentence], nlp: Language, name: str = BUNDLED_TAGGER
) -> TaggerAccuracy:
    """Tag the gold words of `sentences` with `nlp` and return how many tags are right.

    A word to which the pipeline gives no universal tag counts as wrong. `name` only labels the
    result. The clock covers `nlp.pipe` on ready-made documents, one per sentence: no tokenising.
    """
    from spacy.tokens import Doc

    sentences = list(sentences)
    docs = [Doc(nlp.vocab, words=list(s.words), spaces=list(s.spaces)) for s in sentences]
    started = time.process_time()
    tagged = list(nlp.pipe(docs))
    seconds = time.process_time() - started

    gold = [tag for sentence in sentences for tag in sentence.tags]
    predicted = [token.pos_ for doc in tagged for token in doc]
    num_gold, num_predicted = Counter(gold), Counter(predicted)
    num_correct = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    return TaggerAccuracy(
        tagger=name,
        num_sentences=len(sentences),
        num_words=len(gold),
        num_correct=num_correct.total(),
        words_per_second=len(gold) / seconds,
        per_tag={
            tag: TagScore(num_gold[tag], num_predicted[tag], num_correct[tag]) for tag in UPOS
        },
    )


def as_table(result: TaggerAccuracy) -> str:
    """Return the result as lines of text: the totals, then one line a tag."""
    lines = [
        f"tagger            {result.tagger}",
        f"sentences         {result.num_sentences:,}",
        f"words             {result.num_words:,}",
        f"UPOS accuracy     {result.accuracy:.2%}",
        f"words per CPU s   {result.words_per_second:,.0f}",
        "",
        f"{'tag':6}{'words':>8}{'recall':>10}{'precision':>11}",
    ]
    for tag, score in result.per_tag.items():
        recall, precision = _percent(score.recall), _percent(score.precision)
        lines.append(f"{tag:6}{score.gold:8,}{recall:>10}{precision:>11}")
    return "\n".join(lines)


def as_json(result: TaggerAccuracy) -> str:
    """Return the result as one line of JSON; shares are in [0, 1], null where undefined."""
    values = {
        "tagger": result.tagger,
        "num_sentences": result.num_sentences,
        "num_words": result.num_words,
        "num_correct": result.num_correct,
        "upos_accuracy": result.accuracy,
        "words_per_cpu_second": result.words_per_second,
        "per_tag": {
            tag: {
                "gold": score.gold,
                "predicted": score.predicted,
                "correct": score.correct,
                "recall": score.recall,
                "precision": score.precision,
            }
            for tag, score in result.per_tag.items()
        },
    }
    return json.dumps(values)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, or 2 with a message on standard error for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m chronomask.prepare.words.english.accuracy",
        description="Universal part-of-speech accuracy of a tagger on the gold tokens of a file.",
    )
    parser.add_argument("conllu", type=Path, help="CoNLL-U file, plain or .gz")
    parser.add_argument(
        "--tagger",
        default=BUNDLED_TAGGER,
        help="installed spaCy pipeline (default: the bundled English model)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    try:
        sentences = list(read_conllu(options.conllu))
        result = tagger_accuracy(sentences, load_tagger(options.tagger), options.tagger)
    except ChronomaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_json(result) if options.json else as_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
