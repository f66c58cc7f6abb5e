"""Speech corpora on disk: how they come here (catalog, transfer, demo) and how their folders are read (layouts)."""
