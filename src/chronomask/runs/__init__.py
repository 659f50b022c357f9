"""What a run folder is: its names and checkpoints, what may change in it, and how it is read back."""
