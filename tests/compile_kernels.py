"""Compile every Triton kernel that a loss launches, for a GPU that is not here: prints its resources.

    python tests/compile_kernels.py 90

The launchers run as they are, on tensors of the CPU; instead of a launch there is a compilation.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Driver:
    """What Triton asks of a device, without one."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, _device):
        return 0


def resources(kernel) -> dict[str, int]:
    """Registers, bytes of stack (spilled ones stand there) and of shared memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    line = next(line for line in text.splitlines() if "REG:" in line)
    found = dict(item.split(":")[:2] for item in line.split() if ":" in item and "[" not in item)
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": kernel.metadata.shared,
    }


def compile_instead(found: list) -> None:
    """Have every launch compile and report."""
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        key = (self.__name__, kernel.hash)
        if key not in {(f["kernel"], f["hash"]) for f in found}:
            flags = {k: v for k, v in kwargs.items() if v is not False}
            found.append(
                {"kernel": self.__name__, "hash": kernel.hash, "flags": flags} | resources(kernel)
            )
            print(json.dumps({k: v for k, v in found[-1].items() if k != "hash"}), flush=True)
        return kernel

    JITFunction.run = compile_only
