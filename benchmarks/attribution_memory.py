"""MiB that P of a sentence takes beyond the model: python -m benchmarks.attribution_memory ours 32.

The way is "ours" or "vmap", the number that of tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks import attribution_data
from benchmarks.attribution_peers import Jacobians
from simcse_fast import integrated_gradients
from simcse_fast.memory import resident_memory, return_free_pages

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Print the peak over what was resident before."""
    way, tokens = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(2)
    model = attribution_data.encoder("minilm", "cpu")
    short, sentence = attribution_data.of_length(4, 1)[0], attribution_data.of_length(tokens, 1)[0]
    nodes, weights = torch.linspace(0.1, 0.9, 15), torch.full((15,), 1 / 15)

    def run(text: str) -> None:
        if way == "ours":
            integrated_gradients(model, text, target="vector", steps=15, progress=False)
        else:
            Jacobians(model, text).by_vmap(nodes, weights)

    run(short)  # what the libraries keep for good
    return_free_pages()
    before = resident_memory()
    RESET.write_text("5")
    run(sentence)
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    print((int(line.split()[1]) * 1024 - before) / 2**20)


if __name__ == "__main__":
    main()
