"""All between a corpus and a report that is not a model; data flows corpus, features, training, evaluation."""
