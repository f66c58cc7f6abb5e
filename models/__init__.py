"""Mamba and Mamba-2 mixers, the shell they live in, and the models built from it."""
