"""Who spoke when in a recording: speech, embeddings of windows, clusters, borders, names."""
