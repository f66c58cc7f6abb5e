"""What benchmarks/mixers.py consists of: the systems, how one cell is measured, stored and shown."""
