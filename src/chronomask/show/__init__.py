"""Shows what masking does to a text and what prepared data holds: in the terminal, and as a page.

May enter: reading what is to be shown, measuring masks made by :mod:`chronomask.masking`, and
drawing them. Nothing here decides a mask.
"""
