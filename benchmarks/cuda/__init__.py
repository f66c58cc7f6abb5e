"""Parts of benchmarks/gpu.py, gpu_mixers.py and gpu_training.py."""
