"""Text front end: raw text to spoken words, to characters or phonemes, to tokens."""
