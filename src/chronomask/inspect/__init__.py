"""Shows what masking does to a text: in the terminal, and as a page to show a colleague.

May enter: reading what is to be shown, measuring masks made by :mod:`chronomask.masking`, and
drawing them. Nothing here decides a mask.
"""
