"""Entry point of `python -m atk` and `torchrun -m atk`: the `atk` command."""

from atk.cli.main import main

if __name__ == "__main__":
    main()
