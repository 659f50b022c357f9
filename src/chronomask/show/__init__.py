"""Shows what masking does to a text and what prepared data holds: in the terminal, and as a page.

Masks are made by :mod:`chronomask.masking` as in training; here they are measured and drawn.
"""
