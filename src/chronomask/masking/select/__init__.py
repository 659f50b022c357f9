"""Which units of a row are chosen: exactly, by compiled loops or dense operations, or as published.

``exact`` is what training uses; ``dense`` gives the same bits on an accelerator; ``draws`` holds the
steps that ``exact`` is made of; ``published`` is the walk of the paper, kept for reproduction.
"""
