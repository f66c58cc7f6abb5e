"""The subcommands of test.py: their flags, and what they do with a trained model."""
