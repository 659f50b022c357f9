"""Sources of text become documents, and documents parts."""
