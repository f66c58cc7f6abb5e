"""From a checkpoint to embeddings, decisions and reports."""
