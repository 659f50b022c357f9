"""Prepared rows on disk, and which of them a training step gets. Nothing about masking enters here."""
