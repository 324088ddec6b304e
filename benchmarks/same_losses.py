"""The same MiniLM trained with the stock loss and with ours: python -m benchmarks.same_losses.

Same seed, same batches, dropout off: the rows of a batch are embedded in another order, so with
dropout on the masks would fall to other rows. AdamW at SimCSE's rate.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks import harness, training_data, training_peers

STEPS, ROWS, LONGEST, RATE = 100, 64, 32, 3e-5


def trained(name: str, batches: list[Any], steps: int) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    model = training_data.minilm(torch.device("cpu")).eval()  # no dropout
    model.max_seq_length = LONGEST
    loss = training_peers.MAKERS[name](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    found = []
    for step in range(steps):
        columns = [model.preprocess(column) for column in batches[step]]
        value = loss(columns, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
        print(f"{name}, step {step + 1}: {found[-1]:.6f}", flush=True)
    return found


def main() -> None:
    """Train twice, compare, save."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    harness.provenance()
    texts = training_data.sentences(200_000)
    if texts is None:
        raise SystemExit("same_losses: needs ../shared/data/wiki_sentences.parquet")
    batches = [
        [texts[2 * ROWS * step + first : 2 * ROWS * (step + 1) : 2] for first in (0, 1)]
        for step in range(steps)
    ]
    names = (training_peers.STOCK, training_peers.KEPT)
    stock, ours = (trained(name, batches, steps) for name in names)
    apart = max(abs(a - b) for a, b in zip(stock, ours, strict=True))
    print(f"losses at most {apart:.1e} apart over {steps} steps")
    row = {"same_losses": steps, "rows": ROWS, "longest": LONGEST, "apart": apart}
    if steps == STEPS:
        print(harness.save("same-losses-cpu", [row | {"stock": stock, "ours": ours}]))


if __name__ == "__main__":
    main()
