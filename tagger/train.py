"""Train the bundled English part-of-speech tagger on the UD English-EWT treebank.

    python tagger/train.py --ewt UD_English-EWT --out src/chronomask/prepare/words/english/english_tagger

Everything that shapes the model is in `config.cfg` beside this file; this script turns the treebank
into spaCy's format, trains as `spacy train` does, and writes the best model without what tagging
does not need (vocabulary, paths). Same treebank, same machine and versions: the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from chronomask.conllu import Sentence
from chronomask.errors import ChronomaskError, UsageError
from chronomask.prepare.words.english.accuracy import (
    as_table,
    load_tagger,
    read_conllu,
    tagger_accuracy,
)

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.vocab import Vocab

CONFIG = Path(__file__).with_name("config.cfg")

META = {
    "name": "chronomask_english_tagger",
    "version": "1.0.0",
    "description": "Universal part-of-speech tags for English, small and fast",
    "author": "chronomask contributors",
    "license": "CC BY-SA 4.0",
    "url": "https://github.com/UniversalDependencies/UD_English-EWT",
    "spacy_version": ">=3.8.0,<4.0.0",
    "sources": [
        {
            "name": "UD English-EWT 2.16",
            "url": "https://github.com/UniversalDependencies/UD_English-EWT",
            "license": "CC BY-SA 4.0",
            "author": "The Board of Trustees of The Leland Stanford Junior University and others",
        }
    ],
}


def treebank_part(folder: Path, part: str) -> Path:
    """Return the file of `part` (train, dev, test) in `folder`; UsageError if there is not one."""
    found = sorted([*folder.glob(f"*-ud-{part}.conllu"), *folder.glob(f"*-ud-{part}.conllu.gz")])
    if len(found) != 1:
        raise UsageError(f"{folder} holds {len(found)} files *-ud-{part}.conllu[.gz], expected one")
    return found[0]


def documents(sentences: Iterable[Sentence]) -> list[list[Sentence]]:
    """Group sentences into the treebank's documents, in order."""
    groups: list[list[Sentence]] = []
    for sentence in sentences:
        if sentence.starts_document or not groups:
            groups.append([])
        groups[-1].append(sentence)
    return groups


def as_doc(sentences: Iterable[Sentence], vocab: Vocab) -> Doc:
    """Join sentences into one spaCy document of gold words, marked as a single sentence.

    The mark keeps spaCy's corpus reader from cutting it at sentence ends again.
    """
    from spacy.tokens import Doc

    sentences = list(sentences)
    words = [word for sentence in sentences for word in sentence.words]
    sentence_starts: list[bool | int | None] = [True, *[False] * (len(words) - 1)]
    return Doc(
        vocab,
        words=words,
        spaces=[space for sentence in sentences for space in sentence.spaces],
        pos=[tag for sentence in sentences for tag in sentence.tags],
        sent_starts=sentence_starts,
    )


def train(ewt: Path, work: Path) -> Language:
    """Return the model with the best accuracy on the dev part; `work` takes temporary files."""
    import spacy
    from spacy.tokens import DocBin
    from spacy.training.initialize import init_nlp
    from spacy.training.loop import train as train_nlp
    from spacy.util import load_config
    from thinc.api import use_ops

    vocab = spacy.blank("en").vocab
    train_sentences = list(read_conllu(treebank_part(ewt, "train")))
    dev_sentences = list(read_conllu(treebank_part(ewt, "dev")))
    # Every sentence twice: alone, and inside its document, where the network sees what precedes
    # the first word, as it does when it tags running text.
    train_docs = [as_doc([sentence], vocab) for sentence in train_sentences]
    train_docs += [as_doc(group, vocab) for group in documents(train_sentences)]
    dev_docs = [as_doc([sentence], vocab) for sentence in dev_sentences]
    paths = {"train": work / "train.spacy", "dev": work / "dev.spacy"}
    for name, docs in (("train", train_docs), ("dev", dev_docs)):
        DocBin(attrs=["ORTH", "SPACY", "POS", "SENT_START"], docs=docs).to_disk(paths[name])

    overrides = {f"paths.{name}": str(path) for name, path in paths.items()}
    config = load_config(CONFIG, overrides=overrides, interpolate=False)
    with use_ops("numpy", use_blis=False):  # twice the speed of BLIS, given a single thread
        train_nlp(init_nlp(config), work)
        return spacy.load(work / "model-best", exclude=["vocab"])


def write_model(nlp: Language, out: Path) -> None:
    """Write the model to `out` without vocabulary, training paths and machine-dependent figures.

    Other files in `out` (licence, model card) stay as they are.
    """
    nlp.config["paths"] = dict.fromkeys(nlp.config["paths"])
    performance = nlp.meta["performance"]
    nlp.meta.update(META, performance={"pos_acc": performance["pos_acc"]})
    out.mkdir(parents=True, exist_ok=True)
    nlp.to_disk(out, exclude=["vocab"])


def main(arguments: list[str] | None = None) -> int:
    """Train, write, and print the accuracy on dev and test; 2 with a message for bad input."""
    parser = argparse.ArgumentParser(description="Train the bundled English tagger.")
    parser.add_argument("--ewt", type=Path, required=True, help="folder of the EWT CoNLL-U files")
    parser.add_argument("--out", type=Path, required=True, help="folder the model is written to")
    options = parser.parse_args(arguments)
    # Before NumPy is imported: one thread sums in one order, and threads would only slow it down.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        parts = {part: treebank_part(options.ewt, part) for part in ("dev", "test")}
        with tempfile.TemporaryDirectory() as work:
            write_model(train(options.ewt, Path(work)), options.out)
        nlp = load_tagger(str(options.out))
        for part, path in parts.items():
            print(f"\n{part}: {path.name}")
            print(as_table(tagger_accuracy(read_conllu(path), nlp, str(options.out))))
    except ChronomaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
