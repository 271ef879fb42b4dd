"""What is done with a trained model: embedding, retrieval, captions, alignment, search, and their metrics."""
