"""Text in, batches out. `corpora` and `tfds_source` find text, `vocabularies` turns it into tokens, `dataset`
keeps the tokens on disk, `batching` says which windows a step sees, `bounds` says what a score is worth."""
