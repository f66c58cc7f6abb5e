"""Speech corpora on disk: download (catalog, transfer), synthesis (demo, demo_voice), and reading (layouts)."""
