"""What the examples train on: text that any Python installation has, and a BERT small enough for it."""

from importlib.metadata import distributions
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

ROW_LENGTH = 64
SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
SPECIALS |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}


def paragraphs(limit: int = 800) -> list[str]:
    """Paragraphs of the descriptions of installed packages."""
    found: dict[str, None] = {}
    for distribution in sorted(distributions(), key=lambda d: d.metadata["Name"] or ""):
        text = str(distribution.metadata.get_payload() or "")
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) > 80 and words.isascii():
                found[words] = None
        if len(found) >= limit:
            break
    return list(found)[:limit]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece of 2,000 pieces."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=2000, special_tokens=list(SPECIALS.values()), show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    ends = [(token, raw.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=ROW_LENGTH, **SPECIALS)


def tokenised(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[dict[str, Any]]:
    """One row per text, with the word that each token belongs to."""
    encodings = tokenizer(texts, truncation=True, max_length=ROW_LENGTH)
    return [
        {"input_ids": ids, "word_ids": encodings.word_ids(k)}
        for k, ids in enumerate(encodings["input_ids"])
    ]


def tiny_bert(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    """Two layers of width 64."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=ROW_LENGTH,
            pad_token_id=0,
        )
    )
