"""The control flow graph of a kernel: basic blocks, where divergent paths meet again, and live registers."""

from ptx_machine.parser import Address, Instruction, Kernel
from ptx_machine.program import EXIT, Block

_WITHOUT_RESULT = {"st", "bra", "bar", "ret", "exit", "cp", "fence", "stmatrix"}


def basic_blocks(kernel: Kernel) -> tuple[list[Block], dict[str, int]]:
    """The basic blocks of a kernel, and the block that each label refers to.

    Blocks also end where execution may have to stop: at barriers, and after waits for wgmma.
    """
    starts = _starts(kernel)
    labels = {label: starts.index(start) for label, start in kernel.labels.items() if start in starts}
    bodies = [kernel.instructions[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    following = [*range(1, len(bodies)), EXIT]
    successors = [_successors(body[-1], after, labels) for body, after in zip(bodies, following, strict=True)]
    joins = _joins(successors)
    blocks = [
        Block(body, after, join, _between(successors, after, join))
        for body, after, join in zip(bodies, successors, joins, strict=True)
    ]
    return blocks, labels


def _starts(kernel: Kernel) -> list[int]:
    targets = {operand for instruction in kernel.instructions for operand in _branch_targets(instruction)}
    starts = {0} | {start for label, start in kernel.labels.items() if label in targets}
    for pc, instruction in enumerate(kernel.instructions, 1):
        if instruction.parts[0] in ("bra", "ret", "exit", "bar") or instruction.opcode.startswith("wgmma.wait_group"):
            starts.add(pc)
    return sorted(start for start in starts if start < len(kernel.instructions))


def _branch_targets(instruction: Instruction) -> list[str]:
    return instruction.operands if instruction.parts[0] == "bra" else []


def _successors(last: Instruction, following: int, labels: dict[str, int]) -> set[int]:
    if last.parts[0] in ("ret", "exit"):
        return {EXIT}
    targets = {labels[label] for label in _branch_targets(last)}
    return targets if targets and last.predicate is None else targets | {following}


def _joins(successors: list[set[int]]) -> list[int]:
    """The immediate post-dominator of each block."""
    every = {*range(len(successors)), EXIT}
    dominators, changed = [every] * len(successors), True  # blocks on every path from a block to the exit
    while changed:
        changed = False
        for block in reversed(range(len(successors))):
            paths = [{EXIT} if after == EXIT else dominators[after] for after in successors[block]]
            new = {block}.union(set.intersection(*paths))
            changed |= new != dominators[block]
            dominators[block] = new
    strict = [blocks - {block} for block, blocks in enumerate(dominators)]
    return [next((b for b in later if b != EXIT and dominators[b] == later), EXIT) for later in strict]


def _between(successors: list[set[int]], starts: set[int], end: int) -> frozenset[int]:
    """Blocks on paths that do not pass `end`."""
    visited, pending = set(), set(starts)
    while pending := pending - visited - {end, EXIT}:
        block = pending.pop()
        visited.add(block)
        pending |= successors[block]
    return frozenset(visited)


def live_out(blocks: list[Block], registers: set[str]) -> list[set[str]]:
    """The registers that may be read after each block before they are written."""
    reads, writes = zip(*(_accesses(block, registers) for block in blocks), strict=True)
    live_in = [set() for _ in blocks]
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(blocks))):
            new = reads[index] | (_live_after(blocks[index], live_in) - writes[index])
            changed |= new != live_in[index]
            live_in[index] = new
    return [_live_after(block, live_in) for block in blocks]


def _live_after(block: Block, live_in: list[set[str]]) -> set[str]:
    return set().union(*(live_in[after] for after in block.successors if after != EXIT))


def _accesses(block: Block, registers: set[str]) -> tuple[set[str], set[str]]:
    """Registers that a block reads before it writes them, and registers that it writes."""
    reads, writes = set(), set()
    for instruction in block.instructions:
        wgmma = instruction.parts[0] == "wgmma"
        results = 0 if instruction.parts[0] in _WITHOUT_RESULT or (wgmma and instruction.parts[1] != "mma_async") else 1
        read = {name for operand in instruction.operands[results:] for name in operand_names(operand)}
        written = {name for operand in instruction.operands[:results] for name in operand_names(operand)}
        if instruction.predicate:
            read |= {instruction.predicate} | written
        if wgmma:
            read |= written
        reads |= (read & registers) - writes
        writes |= written & registers
    return reads, writes


def operand_names(operand) -> list[str]:
    """The names in an operand, which may be a vector or an address."""
    if isinstance(operand, tuple):
        return [name for element in operand for name in operand_names(element)]
    return [operand.base] if isinstance(operand, Address) else [operand]
