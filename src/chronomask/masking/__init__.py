"""Which tokens are masked, and what the model sees in their place: ratio, content, strategy; the masker."""
