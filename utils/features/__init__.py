"""Audio and text to stored log-mel spectrograms and tokens."""
