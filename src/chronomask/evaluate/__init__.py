"""Downstream verification: fine-tuning, pseudo-log-likelihood, probing, intrinsic losses."""
