"""Triton's interpreter in two thirds of its time: it would prepare `triton.language` for every call of a function."""

import functools

import triton.language as tl
from triton.runtime import interpreter


def prepare_once() -> None:
    """Let a function that a kernel calls use what the kernel has prepared."""
    prepare = interpreter._patch_lang

    @functools.wraps(prepare)
    def prepare_what_is_new(function):
        modules = (value for value in function.__globals__.values() if value is tl or value is tl.core)
        if any(tl.core.is_builtin(module.load) for module in modules):
            return prepare(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = prepare_what_is_new
