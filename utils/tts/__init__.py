"""Text to mel: training, synthesis, vocoders, evaluation, commands."""
