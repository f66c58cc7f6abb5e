"""Parts of benchmarks/mixers.py: the systems, how one cell is measured, stored and shown; others share some of them."""
