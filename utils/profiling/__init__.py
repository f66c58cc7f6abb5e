"""The memory and the computation of a training step: predicted on tensors without data, and measured."""
