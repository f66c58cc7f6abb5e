"""Mamba and Mamba-2 mixers, the residual stack around them, and the models built from it."""
