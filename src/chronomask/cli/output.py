"""What commands print: the one place where text that comes from files is made harmless to a terminal."""

from __future__ import annotations

import sys

from chronomask.errors import harmless

__all__ = ["tell"]


def tell(text: object, *, coloured: bool = False, end: str = "\n", aside: bool = False) -> None:
    """Print a text without what would act on a terminal; ``coloured``: one that has colours of ours, and in
    which that was done with what comes from files.

    ``aside``: to standard error, away from output that another program may read.
    """
    shown = str(text) if coloured else harmless(text)
    print(shown, end=end, file=sys.stderr if aside else sys.stdout)
