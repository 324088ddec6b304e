"""Short stand-ins for models, sentences and options: equal where what they stand for is."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from simcse_fast.attribution.encoder import Encoder
    from simcse_fast.information.sentences import Sentences

DEPTH = 4
SAMPLE = 1024  # weights of each matrix that identify a model


def fingerprint(encoder: Encoder) -> str:
    """A hash of an encoder: of a sample of its weights, its vocabulary, and how it reads a text."""
    modules = [_of_module(module) for module in (encoder.transformer, *encoder.tail)]
    reading = repr((encoder.normalizes, encoder.longest, encoder.prompt))
    return _hashed(*modules, reading, repr(sorted(encoder.tokenizer.get_vocab().items())))


def hash_of(sentences: Sentences) -> str:
    """A hash of texts."""
    data = sentences.data[sentences.starts[0] : sentences.starts[-1]]
    return _hashed(np.diff(sentences.starts).tobytes(), data.tobytes())


def described(value: Any, depth: int = DEPTH) -> Any:
    """An option as JSON has it, or what stands for it there.

    Args:
        value: of the option.
        depth: of functions and objects that hold each other, how many are looked into.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if callable(value) and not isinstance(value, Tensor):
        name = getattr(value, "__qualname__", type(value).__name__)
        return f"{name} {_of_callable(value, depth - 1) if depth else ''}".rstrip()
    try:
        array = torch.as_tensor(value).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError):  # the method will refuse it
        return type(value).__name__
    return f"{array.shape} {_hashed(array.tobytes())}"


def _of_callable(value: Any, depth: int) -> str:
    """A hash of what a function does: its code, and what it holds on to."""
    if isinstance(value, nn.Module):
        return _of_module(value)
    code, held = getattr(value, "__code__", None), [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, partial):
        held += [value.func, *value.args, *value.keywords, *value.keywords.values()]
    elif code is not None:
        held += [cell.cell_contents for cell in value.__closure__ or ()]
        held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        held += getattr(getattr(value, "__self__", None), "__dict__", {}).values()
    elif not isinstance(value, type):
        held.append(getattr(type(value).__call__, "__func__", type(value).__call__))
    own = _of_code(code) if code else type(value).__qualname__
    return _hashed(own, *(str(described(one, depth)) for one in held))


def _of_code(code: CodeType) -> str:
    """Without its file and lines, which change when other code does."""
    inner = [_of_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return _hashed(code.co_code, repr(code.co_names), *inner)


def _of_module(module: nn.Module) -> str:
    config: Any = getattr(module, "get_config_dict", dict)()
    named = json.dumps(config, sort_keys=True, default=lambda value: type(value).__name__)
    content: list[str | bytes] = [type(module).__name__, named]
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            flat = value.detach().reshape(-1)
            sample = flat[:: max(len(flat) // SAMPLE, 1)].double().cpu().numpy()
            content += [f"{name} {tuple(value.shape)} {value.dtype}", sample.tobytes()]
    return _hashed(*content)


def _hashed(*content: str | bytes) -> str:
    """Parts of any lengths, each told from the next."""
    found = hashlib.sha256()
    for one in content:
        data = one.encode("utf-8", "surrogatepass") if isinstance(one, str) else one
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]
