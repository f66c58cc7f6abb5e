"""From embeddings to answers: back end, normalization, calibration and thresholds."""
