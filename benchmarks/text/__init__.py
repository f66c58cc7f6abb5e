"""What the tables of all benchmarks are written with."""
