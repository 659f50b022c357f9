"""From text to prepared rows, offline: sources, tokenizer, taggers, alignment, packing."""
