"""Kernels behind the ops: Triton launchers, and the C++ extension of csrc/ (installed as `atk.kernels`)."""
