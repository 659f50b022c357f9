"""Documents become tokens with words and classes, and tokens become rows."""
