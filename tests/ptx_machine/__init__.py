"""Executes the PTX that Triton compiles for sm_80 and sm_90, on the CPU, and checks it while it runs.

    with active(capability=(9, 0), seed=0) as machine:
        atk.max_mean_similarity(audio, text, backend="triton")  # CPU tensors

Each launch within `active` is specialized and compiled by Triton for that GPU, and executed on the memory of the
tensors, an instruction at a time for all lanes of a warp. Faults raise MachineError at the end, with the lines of the
Python and the PTX source. docs/ptx-machine.md says what this proves and what it does not.

`parser`, `control_flow`, and `translate` (with `emitter` and its subclasses in `emit_*`) turn PTX into Python, a
function per basic block. The functions call `arithmetic`, `lanes`, `global_access`, `shared_access`, `async_copy`, and
`wgmma` on `warps`. A `launch` runs the CTAs of a grid. `memory` and its `shadow` know who accessed a byte last.
"""

from ptx_machine.cta import Deadlock
from ptx_machine.parser import PtxError
from ptx_machine.report import Fault, MachineError, Report
from ptx_machine.triton_launches import Machine, active

__all__ = ["Deadlock", "Fault", "Machine", "MachineError", "PtxError", "Report", "active"]
