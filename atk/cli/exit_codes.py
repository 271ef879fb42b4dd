"""Exit codes of the `atk` command."""

FAILURE = 1
MISTAKE = 2  # of the user
INTERRUPTED = 130
