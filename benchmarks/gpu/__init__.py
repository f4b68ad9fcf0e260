"""Measuring training on one GPU; `scripts/gpu.py` runs it."""
