"""Which documents are kept: filters, and duplicates left out."""
