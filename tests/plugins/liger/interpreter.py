"""Lets liger's kernels run under Triton's interpreter, on the CPU. Import this before anything that imports triton.

The interpreter of triton 3.9 lacks two things that liger uses: floats as arguments of a kernel, which it leaves as
Python floats without a `.to`, and the functions of CUDA's libdevice. Those of triton 3.5 and 3.6 also cannot use their
scalars, arrays of one element, as indices with numpy 2.5.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import importlib
import sys

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter


def _rsqrt(x):
    return 1.0 / tl.sqrt(x)


def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


def _with_floats(convert):
    def converted(argument):
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(argument)

    return converted


def _with_indices(patch):
    def patched(tensor, *scope):
        patch(tensor, *scope)
        index = lambda self: int(self.handle.data.item())  # noqa: E731
        for each in scope:
            each.set_attr(tensor, "__index__", index)
        if not scope:  # triton 3.5
            tensor.__index__ = index

    return patched


def install():
    """Fill the gaps, for the whole process."""
    interpreter._implicit_cvt = _with_floats(interpreter._implicit_cvt)
    interpreter._patch_lang_tensor = _with_indices(interpreter._patch_lang_tensor)
    importlib.import_module("liger_kernel.ops")
    for name, module in list(sys.modules.items()):
        if name.startswith("liger_kernel.ops"):
            for function, replacement in (("rsqrt", _rsqrt), ("tanh", _tanh)):
                if hasattr(module, function):
                    setattr(module, function, replacement)


install()
