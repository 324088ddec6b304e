"""A model of the kernel in csrc/cuda, not a measurement: python -m benchmarks.pipeline_model.

Events of one block in cycles: two consumers whose products take turns in the tensor cores, stages
that are loaded in order and emptied by both, epilogues of a length that nobody has measured yet.
It says how busy the tensor cores could be by stages, their depth and the first consumer's lead, and
was used to choose them. How the block shares caches, clocks and power with 131 others is not in it.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCT = 128  # cycles of 64 x 256 x 16
ROWS, COLUMNS = 128, 128  # of a stage that a block loads for itself: the other has 128 columns too


@dataclass(frozen=True)
class Block:
    """A block and its surroundings."""

    depth: int  # numbers of a stage
    stages: int
    lead: int  # of the first consumer, in stages
    width: int = 768
    epilogue: int = 1100  # cycles
    latency: int = 700  # cycles from a request to its first byte
    rate: int = 48  # bytes a cycle

    @property
    def load(self) -> float:
        """Cycles in which a stage arrives."""
        return (ROWS + COLUMNS) * self.depth * 2 / self.rate


class Consumer:
    """A warpgroup, and how far it is."""

    def __init__(self) -> None:
        self.begun = self.done = 0  # steps
        self.rests_until = 0.0
        self.finished = 0  # tiles whose epilogue has begun
        self.waiting: deque[int] = deque()  # products in front of the tensor cores


class Run:
    """Some tiles of a block."""

    def __init__(self, block: Block, tiles: int) -> None:
        self.block, self.steps = block, block.width // block.depth
        self.total = self.steps * tiles
        self.now = self.busy = self.engine = 0.0
        self.loaded = self.requested = 0
        self.consumers = Consumer(), Consumer()
        self.multiplying, self.turn = False, 1
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()

    def busy_share(self) -> float:
        """Of the tensor cores."""
        self.go_on()
        while self.events:
            self.now, _, happens = heapq.heappop(self.events)
            happens()
            self.go_on()
        return self.busy / self.now

    def after(self, cycles: float, happens: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self.events, (self.now + cycles, next(self.count), happens))

    def go_on(self) -> None:
        """Whatever can begin now."""
        emptied = min(c.done for c in self.consumers)
        while self.requested < min(self.total, emptied + self.block.stages):
            self.engine = max(self.engine, self.now) + self.block.load
            self.after(self.engine + self.block.latency - self.now, self.arrives)
            self.requested += 1
        for number, consumer in enumerate(self.consumers):
            while self.can_begin(number, consumer):
                products = self.block.depth // 16
                consumer.waiting.extend([1] * (products - 1) + [products])
                consumer.begun += 1
        self.multiply()

    def can_begin(self, number: int, consumer: Consumer) -> bool:
        """Whether its next step is loaded and its turn; at the end of a tile, its epilogue."""
        step = consumer.begun
        if step == self.total or step >= self.loaded or step >= consumer.done + 2:
            return False
        if step % self.steps == 0 and step // self.steps > consumer.finished:
            if consumer.done == step:
                consumer.finished += 1
                consumer.rests_until = self.now + self.block.epilogue
                self.after(self.block.epilogue, lambda: None)
            return False
        if number == 1 and step % self.steps == 0:
            ahead = self.consumers[0].begun - step
            return ahead >= min(self.block.lead, self.steps) and self.now >= consumer.rests_until
        return self.now >= consumer.rests_until

    def multiply(self) -> None:
        """The next product of whoever is next and has one."""
        if self.multiplying:
            return
        for number in (1 - self.turn, self.turn):
            if self.consumers[number].waiting:
                self.turn, self.multiplying = number, True
                last = self.consumers[number].waiting.popleft() > 1
                self.after(PRODUCT, partial(self.multiplied, self.consumers[number], last=last))
                return

    def multiplied(self, consumer: Consumer, *, last: bool) -> None:
        """A product is done, perhaps its step's last."""
        self.multiplying = False
        self.busy += PRODUCT
        consumer.done += last

    def arrives(self) -> None:
        """One more stage."""
        self.loaded += 1


def main() -> None:
    """The best lead of each way to divide the shared memory."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline_model", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--tiles", type=int, default=40)
    tiles = parser.parse_args().tiles
    print("share of time in which the tensor cores are busy, by the first consumer's lead")
    for epilogue, memory in itertools.product((1100, 1500), ((700, 48), (1000, 40))):
        for depth, stages in ((64, 4), (32, 8)):
            found = [
                Run(Block(depth, stages, lead, 768, epilogue, *memory), tiles).busy_share()
                for lead in range(stages)
            ]
            shares = "  ".join(f"{lead}: {share:.2f}" for lead, share in enumerate(found))
            print(f"epilogue {epilogue}, memory {memory}, {stages} stages of {depth}:  {shares}")


if __name__ == "__main__":
    main()
