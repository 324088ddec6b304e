"""Where an encoder keeps its attention heads and its feed-forward neurons."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from simcse_fast.errors import InputError


@dataclass(frozen=True)
class Layout:
    """Names of the parts of one family of encoders.

    Args:
        layers: path from the model to the list of its layers.
        value: path from a layer to the Linear that makes the heads' values.
        out: path to the Linear behind the heads, whose input is one head after the other.
        up: paths to the Linears whose outputs are the neurons; those that exist are taken.
        down: path to the Linear behind the neurons.
        width: name of the number of neurons in the model's configuration.
        heads: name of the number of heads there.

    Example:
        >>> from simcse_fast.sparsity import Layout
        >>> Layout("encoder.layer", "attention.self.value", "attention.output.dense",
        ...        ("intermediate.dense",), "output.dense").width
        'intermediate_size'
    """

    layers: str
    value: str
    out: str
    up: tuple[str, ...]
    down: str
    width: str = "intermediate_size"
    heads: str = "num_attention_heads"


BERT = Layout(
    "encoder.layer",
    "attention.self.value",
    "attention.output.dense",
    ("intermediate.dense",),
    "output.dense",
)
T5 = "layer.1.DenseReluDense"
LAYOUTS = {
    **dict.fromkeys(
        ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel"), BERT
    ),
    "MPNetModel": Layout(
        "encoder.layer", "attention.attn.v", "attention.attn.o", BERT.up, BERT.down
    ),
    "DistilBertModel": Layout(
        "transformer.layer",
        "attention.v_lin",
        "attention.out_lin",
        ("ffn.lin1",),
        "ffn.lin2",
        "hidden_dim",
        "n_heads",
    ),
    "T5EncoderModel": Layout(
        "encoder.block",
        "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        (f"{T5}.wi", f"{T5}.wi_0", f"{T5}.wi_1"),
        f"{T5}.wo",
        "d_ff",
        "num_heads",
    ),
}


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer that units are removed from, and what they lie in."""

    value: nn.Linear
    out: nn.Linear
    up: tuple[nn.Linear, ...]
    down: nn.Linear
    module: nn.Module
    homes: tuple[tuple[nn.Module, str], ...]  # of up and down: the module that holds each, its name


@dataclass(frozen=True)
class Units:
    """Everything of a model that can be removed."""

    layers: tuple[Layer, ...]
    heads: int  # of a layer
    width: str  # name of the number of neurons in the configuration

    @property
    def neurons(self) -> int:
        """Of a layer."""
        return self.layers[0].down.in_features

    @property
    def depth(self) -> int:
        """Numbers of a head."""
        return self.layers[0].out.in_features // self.heads


def check_same_shape(transformer: Any, units: Units, layout: Layout | None, argument: str) -> None:
    """Refuse a model with other units.

    Raises:
        InputError: they differ in number or width.
    """
    other = units_of(transformer, layout)
    shapes = [
        (len(one.layers), one.heads, one.neurons, one.layers[0].out.out_features)
        for one in (other, units)
    ]
    if shapes[0] != shapes[1]:
        found, wanted = (
            "{} layers of {} heads and {:,} neurons, {} wide".format(*shape) for shape in shapes
        )
        raise InputError(f"{argument}: expected {wanted}; got {found}")


def units_of(transformer: Any, layout: Layout | None = None) -> Units:
    """The units of a model.

    Raises:
        InputError: its family is not known, or the layout does not fit it.
    """
    name = type(transformer).__name__
    if layout is not None and not isinstance(layout, Layout):
        raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}")
    if layout is None and name not in LAYOUTS:
        raise InputError(
            f"model: where {name} keeps its heads and neurons is not known; known are "
            f"{', '.join(LAYOUTS)}; for another family give layout=simcse_fast.sparsity.Layout(...)"
            " with the names of its parts"
        )
    layout = LAYOUTS[name] if layout is None else layout
    try:
        layers = tuple(_layer(module, layout) for module in attrgetter(layout.layers)(transformer))
        heads = int(getattr(transformer.config, layout.heads))
        getattr(transformer.config, layout.width)
    except AttributeError as error:
        raise InputError(f"layout: {name} has no such part ({error})") from None
    units = Units(layers, heads, layout.width)
    shapes = {(layer.out.in_features, layer.down.in_features) for layer in layers}
    if len(shapes) != 1 or units.layers[0].out.in_features % heads:
        raise InputError(
            f"model: expected layers of one width that {heads} heads divide, got (attention, "
            f"neurons) {sorted(shapes)}"
        )
    return units


def _layer(module: nn.Module, layout: Layout) -> Layer:
    found = {path: _find(module, path) for path in (*layout.up, layout.down)}
    up = tuple(path for path in layout.up if found[path] is not None)
    if not up:
        raise AttributeError(f"none of {', '.join(layout.up)}")
    linears = {
        path: attrgetter(path)(module) for path in (layout.value, layout.out, *up, layout.down)
    }
    for path, linear in linears.items():
        if type(linear) is not nn.Linear:  # adapters and quantised layers cannot be cut
            raise InputError(f"model: {path} is a {type(linear).__name__}; expected nn.Linear")
    return Layer(
        *(linears[layout.value], linears[layout.out]),
        tuple(linears[path] for path in up),
        linears[layout.down],
        module,
        tuple(_home(module, path) for path in (*up, layout.down)),
    )


def _find(module: nn.Module, path: str) -> Any:
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def _home(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    place, _, name = path.rpartition(".")
    return (attrgetter(place)(module) if place else module), name
