"""Listings of GPU machine code in the format of the disassembler, from a few lines."""

from atk.kernels.sass import Instruction, parse


def listing(*lines: str) -> list[Instruction]:
    """Instructions as parsed from a listing. A line may start with `label:`, and operands may be `{label}`."""
    labels = {line.split(":")[0]: f"{16 * i:#x}" for i, line in enumerate(lines) if ":" in line.split()[0]}
    code = [line.split(": ")[-1].format(**labels) for line in lines]
    return parse(
        "\n".join(f"        /*{16 * i:04x}*/      {one} ;     /* 0x00000a0000017945 */" for i, one in enumerate(code))
    )
