"""The texts of an ablation, each read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from simcse_fast.training.run import text_encoder
from simcse_fast.training.texts import read_columns
from simcse_fast.training.tokens import is_file, token_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.ablations.run import Request
    from simcse_fast.information.sentences import Sentences
    from simcse_fast.training.encoders import Encoder
    from simcse_fast.training.options import Options
    from simcse_fast.training.tokens import TokenData

NAMES = {"unsupervised": ("text",), "triplets": ("anchor", "positive", "negative")}
PAIR = 2


@dataclass(frozen=True)
class Source:
    """A text to train on, as `train` takes it, and its ids."""

    argument: str
    value: Any
    data: TokenData


def read_sources(
    request: Request, encoder: Encoder, options: Options, say: Callable[[str], None]
) -> dict[str, Source]:
    """Sentences, triplets, and pairs: the triplets without their negatives, where they have any."""
    given: dict[str, tuple[str, Any]] = {}
    if request.sentences is not None:
        given["sentences"] = "unsupervised", held(request.sentences, "unsupervised")
    if request.triplets is not None:
        columns = read_columns(request.triplets, "triplets")
        given["triplets"] = "triplets", held(request.triplets, "triplets")
        if len(columns) > PAIR:
            given["pairs"] = "triplets", table(columns[:PAIR], "triplets")
    sources = {}
    for name, (argument, value) in given.items():
        ids = text_encoder(encoder, options, argument)
        sources[name] = Source(
            argument, value, token_data(value, argument, ids, request.output / "cache", say)
        )
    return sources


def held(source: Any, argument: str) -> Any:
    """A file as it is; anything else in memory, so that no run reads it again."""
    return source if is_file(source) else table(read_columns(source, argument), argument)


def table(columns: list[Sentences], argument: str) -> pa.Table:
    """Columns of text by the names that `train` knows."""
    named = zip(NAMES[argument], columns, strict=False)
    return pa.table({name: pa.array(column.texts(), pa.string()) for name, column in named})
