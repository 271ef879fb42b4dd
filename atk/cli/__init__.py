"""The `atk` command."""
