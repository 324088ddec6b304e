"""Integrated Gradients under captum's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from simcse_fast.attribution.baselines import read_baseline
from simcse_fast.attribution.chunks import budget_for
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.path import Path, gradient_of, widened
from simcse_fast.attribution.targets import read_target, target_values
from simcse_fast.attribution.tokens import check_sentences, tokenize
from simcse_fast.kernels.path_integral.quadrature import RULES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from simcse_fast.attribution.targets import Target
    from simcse_fast.attribution.tokens import Sentence
    from simcse_fast.kernels.path_integral.quadrature import Rule

METHODS = {"gausslegendre": "gausslegendre", "riemann_middle": "midpoint", "mapped": "mapped"}
REFUSED = {
    "riemann_trapezoid": "has weights in captum that add up to (n - 1) / n: scores are too small",
    "riemann_left": "has an error of order 1 / n, riemann_middle of 1 / n^2 at the same cost",
    "riemann_right": "has an error of order 1 / n, riemann_middle of 1 / n^2 at the same cost",
}


class IntegratedGradients:
    """`integrated_gradients` with the arguments, and the numbers, of captum's class.

    As in captum the rule's own weights are taken, so that the convergence delta tells how far the
    nodes suffice; `integrated_gradients` corrects its weights by it, and estimates the error.

    Args:
        model: a SentenceTransformer, or a pair (transformers model, tokenizer) with `pooling`.
        pooling: of a pair: "mean" (default), "cls", "max", ... as sentence-transformers names them.

    Example:
        >>> scores, delta = IntegratedGradients(encoder).attribute(
        ...     ["Cats chase mice."], return_convergence_delta=True
        ... )
        >>> len(scores), delta.shape
        (1, torch.Size([1]))
    """

    def __init__(self, model: Any, *, pooling: str | None = None) -> None:
        self.encoder = open_encoder(model, pooling)

    def attribute(
        self,
        inputs: Sequence[str] | str | Tensor,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores of tokens, or of every number of their word embeddings.

        Args:
            inputs: B sentences, whose special tokens stay as they are; or word embeddings
                (B, S, H), all of which move.
            baselines: of sentences as `integrated_gradients` takes it (None: "pad"); of word
                embeddings a number, or a tensor that broadcasts to them (None: 0).
            target: a dimension of the embedding as the model returns it, or what
                `integrated_gradients` takes, "vector" aside (None: "self").
            additional_forward_args: of word embeddings their attention mask (B, S), 1 at tokens.
            n_steps: nodes on the path.
            method: "gausslegendre", "riemann_middle" or, which captum has not, "mapped".
            internal_batch_size: nodes times sentences of a pass at most; None: by free memory.
            return_convergence_delta: give that too.

        Returns:
            (B, S) scores of the tokens of sentences, 0 at padding, or (B, S, H); with the delta
            (B,), sum of scores - (target at the inputs - target at the baselines), if asked for.

        Raises:
            TypeError: an argument is of no kind that is known.
            ValueError: a method that is unknown or wrong, a number < 1, or shapes that do not fit.
        """
        if method not in METHODS:
            why = REFUSED.get(method, "is not known")
            raise ValueError(f"method: {method!r} {why}; expected one of {', '.join(METHODS)}.")
        for name, number in (("n_steps", n_steps), ("internal_batch_size", internal_batch_size)):
            if number is None and name == "internal_batch_size":
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name}: expected a number, got {type(number).__name__}.")
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}.")
        rule = RULES[METHODS[method]](n_steps)
        with self.encoder.frozen():
            if isinstance(inputs, torch.Tensor):
                given = self._checked(inputs, baselines, additional_forward_args)
                scores, delta = self._of_embeddings(*given, target, rule, internal_batch_size)
            else:
                if additional_forward_args is not None:
                    raise ValueError("additional_forward_args: sentences need none; leave it out.")
                tokens = tokenize(self.encoder, check_sentences(inputs, "inputs"))
                scores, delta = self._of_tokens(
                    tokens, baselines, target, rule, internal_batch_size
                )
        return (scores, delta) if return_convergence_delta else scores

    def _of_tokens(
        self, tokens: list[Sentence], baselines: Any, target: Any, rule: Rule, most: int | None
    ) -> tuple[Tensor, Tensor]:
        budget = budget_for(self.encoder, most and most * max(map(len, tokens)))
        start = read_baseline("pad" if baselines is None else baselines, self.encoder, "baselines")
        path = Path(self.encoder, tokens, [~one.special for one in tokens], start, budget)
        whole, empty = path.ends()
        explained = self._target(target, whole)
        every = [(number, rule.alpha) for number in range(len(tokens))]
        found = [rule.weight @ one for one in path.contributions(explained, whole, every)]
        scores = pad_sequence([torch.from_numpy(one) for one in found], batch_first=True)
        return scores, scores.sum(1) - _change(explained, whole, empty)

    def _of_embeddings(
        self,
        words: Tensor,  # (B, S, H)
        start: Tensor,  # (B, S, H)
        mask: Tensor,  # (B, S)
        target: Any,
        rule: Rule,
        most: int | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            whole, empty = (widened(self.encoder(x, mask, prompted=False)) for x in (words, start))
        explained, step = self._target(target, whole), words - start
        tokens = budget_for(self.encoder, most and most * words.shape[1]).tokens
        alpha, weight = (torch.tensor(x).to(whole) for x in (rule.alpha, rule.weight))
        rows = torch.arange(len(words), device=whole.device)
        total = torch.zeros_like(step, dtype=whole.dtype)
        for some in torch.split(torch.arange(len(alpha)), max(1, tokens // mask.numel())):
            times = len(some)
            # In fp32 at least: 16 bits would move the nodes.
            points = start.to(whole) + alpha[some, None, None, None] * step.to(whole)
            points = points.to(words.dtype).flatten(0, 1)
            with torch.enable_grad():
                embeddings = self.encoder(
                    points.requires_grad_(), mask.repeat(times, 1), prompted=False
                )
                gradient = gradient_of(explained, points, embeddings, whole, rows.repeat(times))
            gradients = gradient.to(total).reshape(times, *step.shape)
            total += torch.einsum("k,kbsh->bsh", weight[some], gradients)
        scores = total * step
        return scores, scores.sum((1, 2)) - _change(explained, whole, empty).to(scores)

    def _checked(
        self, inputs: Tensor, baselines: Any, forward_args: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Word embeddings, their baselines (B, S, H) and mask (B, S)."""
        width, device = self.encoder.width, self.encoder.device
        if inputs.ndim != 3 or not inputs.numel() or inputs.shape[-1] != width:  # noqa: PLR2004
            raise ValueError(
                f"inputs: expected sentences or word embeddings (B, S, {width}), got "
                f"{tuple(inputs.shape)}."
            )
        words = inputs.detach().to(device, self.encoder.dtype)
        given = forward_args if isinstance(forward_args, tuple) else (forward_args,)
        if len(given) != 1:
            raise ValueError(
                "additional_forward_args: expected one attention mask, got a tuple of "
                f"{len(given)}."
            )
        mask = torch.ones(words.shape[:2]) if given[0] is None else torch.as_tensor(given[0])
        if mask.shape != words.shape[:2] or not bool(mask.any(1).all()):
            raise ValueError(
                f"additional_forward_args: expected an attention mask {tuple(words.shape[:2])} "
                f"with a token in each row, got {tuple(mask.shape)}."
            )
        start = torch.as_tensor(0 if baselines is None else baselines).detach().to(words)
        try:
            start = start.expand_as(words)
        except RuntimeError as error:
            raise ValueError(
                "baselines: expected a number or a tensor that broadcasts to "
                f"{tuple(words.shape)}, got {tuple(start.shape)}."
            ) from error
        return words, start, mask.to(device, torch.int64)

    def _target(self, target: Any, whole: Tensor) -> Target:
        """As `integrated_gradients` takes it, or a dimension of the embedding."""
        if isinstance(target, str) and target == "vector":
            raise ValueError('target: "vector" is no single number; name one dimension.')
        if isinstance(target, int) and not isinstance(target, bool):
            if not 0 <= target < whole.shape[1]:
                raise ValueError(
                    f"target: expected one of {whole.shape[1]} dimensions, got {target}."
                )
            target = torch.eye(whole.shape[1])[target]
        wanted = "self" if target is None else target
        return read_target(wanted, self.encoder, whole, budget_for(self.encoder, None))


def _change(target: Target, whole: Tensor, empty: Tensor) -> Tensor:
    """(B,) of the target from the baselines to the inputs."""
    ends = [target_values(target, end, whole) for end in (whole, empty)]
    return torch.from_numpy(ends[0] - ends[1])
