"""The parts of benchmarks/studies/text_to_mel.py and benchmarks/studies/streaming.py."""
