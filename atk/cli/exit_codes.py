"""Exit codes of the `atk` command."""

FAILURE = 1
MISTAKE = 2  # made by the user
INTERRUPTED = 130
