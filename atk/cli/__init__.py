"""The `atk` command line."""
