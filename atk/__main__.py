"""`python -m atk`, and so `torchrun -m atk`: the `atk` command."""

from atk.cli.main import main

main()
