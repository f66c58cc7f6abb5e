"""The parts of benchmarks/text_to_mel.py and benchmarks/streaming.py."""
