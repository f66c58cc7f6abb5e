"""From text to log-mels, and from log-mels to sound."""
