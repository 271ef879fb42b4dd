"""Use and evaluation of trained models: embedding, retrieval, captioning, alignment, search, protocols, and metrics."""
