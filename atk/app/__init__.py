"""The page of `atk app`: search, captions, and the curves of a run in a browser."""
