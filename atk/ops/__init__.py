"""Differentiable ops, their backends, and their reference in plain PyTorch. `atk` exports the public functions."""
