"""Executes the cases of tests/kernels/test_executed_values.py and prints a table of kernels in Markdown.

An error is the largest one of any result of the cases that launch the kernel, relative to the result's largest value.
"""

import argparse
import sys
from dataclasses import dataclass, field

import torch
from support.executed import CAPABILITIES, CASES, DTYPES, Executed, combinations, execute


@dataclass
class Row:
    """A kernel in a dtype. `compiled` are the source lines of its code, `ran` those that were executed."""

    cases: set[str] = field(default_factory=set)
    launches: int = 0
    instructions: int = 0
    error: float = 0.0
    reference_error: float = 0.0
    faults: int = 0
    compiled: set[str] = field(default_factory=set)
    ran: set[str] = field(default_factory=set)

    def add(self, case: str, executed: Executed, kernel: str) -> None:
        """Adds the launches of a kernel by a case."""
        self.cases.add(case)
        self.error = max(self.error, *executed.errors.values())
        self.reference_error = max(self.reference_error, *executed.reference_errors.values())
        report = executed.machine.report
        self.faults += sum(fault.count for fault in report.faults.values() if fault.kernel == kernel)
        for launch in report.launches:
            if launch.kernel == kernel:
                self.launches += 1
                self.instructions += launch.instructions
                for block, count in zip(launch.program.blocks, launch.executions, strict=True):
                    lines = {instruction.source for instruction in block.instructions}
                    self.compiled |= lines
                    self.ran |= lines if count else set()

    def markdown(self, kernel: str, dtype: str) -> str:
        lines = f"{len(self.ran)} of {len(self.compiled)}"
        counts = f"{len(self.cases)} | {self.launches:,} | {self.instructions:,} | {lines}"
        return f"| {kernel} | {dtype} | {counts} | {self.error:.1e} | {self.reference_error:.1e} | {self.faults} |"


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    arch = f"sm_{arguments.capability.replace('.', '')}"
    rows: dict[tuple[str, str], Row] = {}
    for name, dtype, _ in (combination for combination in combinations() if combination[2] == arch):
        if dtype not in arguments.dtypes or arguments.only not in name:
            continue
        executed = execute(CASES[name], DTYPES[dtype], CAPABILITIES[arch], strict=False)
        for kernel in {launch.kernel for launch in executed.machine.report.launches}:
            rows.setdefault((kernel, dtype), Row()).add(name, executed, kernel)
        problems = [*executed.inaccurate(), *map(str, executed.machine.report.faults.values())]
        print(f"{name}, {dtype}: {'; '.join(problems) or 'ok'}", file=sys.stderr)
    columns = "dtype | cases | launches | warp instructions | lines executed | error | reference's error | faults"
    print(f"| kernel on {arch} | {columns} |\n|{'---|' * 9}")
    for (kernel, dtype), row in sorted(rows.items()):
        print(row.markdown(kernel, dtype))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ptx_machine", description=__doc__)
    parser.add_argument("--capability", default="9.0", choices=["8.0", "9.0"], help="compute capability of the GPU")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
