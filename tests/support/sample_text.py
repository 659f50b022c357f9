"""A short text with all that a page must escape, lay out or keep."""

TEXT = "The <b>model</b> & its words: “easy” ones first, hard ones last.\nThen all again."
