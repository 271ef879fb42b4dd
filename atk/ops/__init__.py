"""The differentiable ops, their backends and their reference in plain PyTorch; the public ones stand in `atk`."""
