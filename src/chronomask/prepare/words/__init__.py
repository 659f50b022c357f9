"""Where the words of a text are, and which class each has."""
