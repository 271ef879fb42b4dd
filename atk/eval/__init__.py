"""Use and evaluation of trained models: embedding, retrieval, captioning, alignment, search, and their metrics."""
