"""The table of executed kernels."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import needs_compiler

pytestmark = [needs_compiler, pytest.mark.exhaustive]


def test_a_row_per_kernel_and_dtype(capsys):
    from ptx_machine.__main__ import main

    main(["--capability", "8.0", "--dtypes", "fp32", "--only", "a single row"])
    out, err = capsys.readouterr()
    header, rule, *rows = out.splitlines()
    assert header.startswith("| kernel on sm_80 | dtype |") and {line.count("|") for line in (header, rule, *rows)} == {
        10
    }
    assert {"forward_kernel", "grad_audio_kernel", "grad_text_kernel"} <= {row.split(" | ")[0][2:] for row in rows}
    assert all(row.endswith("| 0 |") for row in rows)
    assert err == "max-mean, a single row, fp32: ok\n"
