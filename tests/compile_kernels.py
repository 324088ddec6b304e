"""Compile every Triton kernel of the package for a GPU that is not here; print what it needs.

    python tests/compile_kernels.py 90

The launchers run as they are, on a CPU's tensors; a launch becomes a compilation. One line of JSON
for each kernel: its name, switches, type of the first argument, registers, bytes of stack (where
spilled ones stand) and of shared memory, bytes that a thread loads in vectors of 16 or more.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from simcse_fast import backend, info_nce, set_workspace_limit, uniformity
from simcse_fast.kernels.infonce import fused, tiles, triton_panels
from simcse_fast.kernels.path_integral import triton_kernels as path_integral
from simcse_fast.kernels.uniformity import tiles as pairs

EVERYTHING = {
    "false_negative_margin": 0.1,
    "query_ids": torch.arange(40_000),
    "key_ids": torch.arange(40_000),
}
LEARNED = {"temperature": torch.tensor(0.05, requires_grad=True)}
MODES = [
    {},
    {"symmetric": True},
    LEARNED,
    LEARNED | {"symmetric": True},
    EVERYTHING,
    EVERYTHING | {"symmetric": True},
]
RARE = [
    {"label_smoothing": 0.1},
    EVERYTHING | LEARNED | {"symmetric": True, "label_smoothing": 0.1},
    {"hard": 2},
    {"normalize": False},
    {"normalize": False, "symmetric": True},
]
SOME = [{}, EVERYTHING | LEARNED]
CASES = [  # rows, width, type, options: each size has tiles of its own
    *((4096, 768, "bfloat16", options) for options in MODES + RARE),
    *((512, 768, "bfloat16", options) for options in [*SOME, RARE[1]]),
    *((2100, 768, "bfloat16", options) for options in [*SOME, MODES[1], RARE[1]]),
    *((4096, 768, "float16", options) for options in MODES[:2]),
    *((4096, 768, "float32", options) for options in [*MODES, *RARE]),
    *((256, 768, "float32", options) for options in MODES[:2]),
    *((5008, 64, "float32", options) for options in (MODES[0], RARE[1])),  # several panels
    *((rows, 64, "bfloat16", {}) for rows in (20_000, 8192, 512)),
    *((rows, 128, "bfloat16", options) for options in SOME for rows in (20_000, 8192)),
    *((rows, 256, "bfloat16", options) for options in SOME for rows in (40_000, 7000, 4096, 512)),
    (512, 100, "float16", {}),
    *((512, 768, "bfloat16", options) for options in (MODES[1], EVERYTHING | {"symmetric": True})),
    *((1500, 768, "bfloat16", options) for options in SOME),
    *((rows, 1100, "bfloat16", {}) for rows in (1500, 512)),  # too wide to be shaped like attention
]
VECTOR_LOAD = re.compile(r"ld\.global\S*\.v([48])\.b32")
PATH_WIDTHS = [
    64,  # the most tokens in a program
    *(384, 768),  # of encoders in use
    4096,  # and wider: one token in a program, whole or in blocks
    769,  # rows that are not aligned
]
PAIRS = [(4096, 768), (200, 64)]  # rows, width: large tiles and small ones
TYPES = ["bfloat16", "float16", "float32"]


class Driver:
    """What Triton asks of a device, without one."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, _device):
        return 0


def resources(kernel):
    """Registers, stack and shared memory, read off the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    line = next(line for line in run.stdout.splitlines() if "REG:" in line)
    found = dict(item.split(":") for item in line.split() if item.count(":") == 1)
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": kernel.metadata.shared,
        "vector_bytes": 4 * sum(int(words) for words in VECTOR_LOAD.findall(kernel.asm["ptx"])),
    }


def compile_instead_of_launching():
    """Print each kernel once."""
    run, seen = JITFunction.run, set()

    def compile_only(self, *args, grid, warmup, **switches):
        kernel = run(self, *args, grid=grid, warmup=True, **switches)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            first = str(getattr(args[0], "dtype", ""))
            row = {"kernel": self.__name__, **switches, "type": first, **resources(kernel)}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        return kernel

    JITFunction.run = compile_only


def main(capability):
    driver.set_active(Driver(capability))
    compile_instead_of_launching()
    tiles.capability = lambda _device: capability
    tiles.processors = lambda _device: 132
    backend._interpreted = lambda: True  # tensors of the CPU are welcome
    backend.PROBLEMS["triton"] = lambda: ""
    pairs.SHAPES["cpu"] = pairs.SHAPES["cuda"]
    fused.multiply = triton_panels.multiply = lambda *_, **__: None
    set_workspace_limit(64 << 20)
    for rows, width, dtype, options in CASES:
        x = torch.ones(rows, width, dtype=getattr(torch, dtype), requires_grad=True)
        more = {
            k: v[:rows] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in options.items()
        }
        if hard := more.pop("hard", 0):
            more["hard_negatives"] = torch.ones(rows, hard, width, dtype=x.dtype)
        info_nce(x, x, backend="triton", **more)
    for (rows, width), dtype in itertools.product(PAIRS, TYPES):
        x = torch.ones(rows, width, dtype=getattr(torch, dtype))
        uniformity(x, backend="triton")
        uniformity(x.requires_grad_(), backend="triton")
    for width, dtype in itertools.product(PATH_WIDTHS, TYPES):
        words = torch.ones(2, 40, width, dtype=getattr(torch, dtype))
        moves, sentence = torch.ones(2, 40, dtype=torch.bool), torch.zeros(9, dtype=torch.int64)
        alpha = torch.ones(9)
        points = path_integral.path_points(words, words[0, 0], moves, sentence, alpha)
        path_integral.path_contributions(points, words, words[0, 0], moves, sentence)


if __name__ == "__main__":
    main(int(sys.argv[1]))
