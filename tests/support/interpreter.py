"""Cuts the run time of Triton's interpreter by a third: it patches `triton.language` on every call of a function."""

import functools

import triton.language as tl
from triton.runtime import interpreter


def patch_once() -> None:
    """Skip the patching for functions that a kernel calls: the kernel has already patched `triton.language`."""
    patch = interpreter._patch_lang

    @functools.wraps(patch)
    def patch_if_needed(function):
        modules = (value for value in function.__globals__.values() if value is tl or value is tl.core)
        if any(tl.core.is_builtin(module.load) for module in modules):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_if_needed
