"""`python -m atk.bench`: `atk bench` for machines with only torch, numpy, and atk installed."""

import argparse
import sys

from atk.bench.command import add_arguments, run


def main() -> None:
    """Parse the command line and run the benchmarks."""
    parser = argparse.ArgumentParser(
        prog="python -m atk.bench", description="Time the ops against other implementations."
    )
    add_arguments(parser)
    try:
        failures = run(parser.parse_args())
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
