"""``python -m chronomask`` is the command line; torchrun starts it this way."""

from chronomask.cli import main

main()
