"""What others do for word weights, as their users call them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attribution_data import parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Captum:
    """captum's IntegratedGradients on the word embeddings, target: cosine with the sentence."""

    def __init__(self, model: Any) -> None:
        from captum.attr import IntegratedGradients  # noqa: PLC0415 - a peer, not always there

        self.transformer, self.tokenizer = parts(model)
        self.transformer.eval()
        self.table = self.transformer.get_input_embeddings()
        self.device = self.table.weight.device
        self.explainer = IntegratedGradients(self._cosine)

    def _mean(self, words: Tensor, mask: Tensor | None) -> Tensor:
        out = self.transformer(inputs_embeds=words, attention_mask=mask).last_hidden_state
        if mask is None:
            return out.mean(1)
        return (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def _cosine(self, words: Tensor, full: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.cosine_similarity(self._mean(words, mask), full, dim=1)

    def _ends(self, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
        words = self.table(ids).detach()
        padding = self.table.weight[self.tokenizer.pad_token_id].detach()
        return words, torch.where(special[..., None], words, padding)

    def one_at_a_time(self, sentences: list[str], nodes: int) -> list[NDArray[np.float32]]:
        """A call a sentence, without padding: the fastest of its ways on a CPU."""
        found = []
        for sentence in sentences:
            code = self.tokenizer(sentence, return_special_tokens_mask=True, return_tensors="pt")
            special = code["special_tokens_mask"].bool().to(self.device)
            words, start = self._ends(code["input_ids"].to(self.device), special)
            with torch.no_grad():
                full = self._mean(words, None)
            given = self.explainer.attribute(
                words, start, additional_forward_args=(full,), n_steps=nodes
            )
            found.append(given.sum(-1)[0].cpu().numpy())
        return found

    def batched(self, sentences: list[str], nodes: int, rows: int) -> list[NDArray[np.float32]]:
        """All sentences in one call, padded, so many rows at a time."""
        code = self.tokenizer(
            sentences, return_special_tokens_mask=True, return_tensors="pt", padding=True
        ).to(self.device)
        words, start = self._ends(code["input_ids"], code["special_tokens_mask"].bool())
        mask = code["attention_mask"]
        with torch.no_grad():
            full = self._mean(words, mask)
        given = self.explainer.attribute(
            words,
            start,
            additional_forward_args=(full, mask),
            n_steps=nodes,
            internal_batch_size=rows,
        )
        lengths = mask.sum(1).tolist()
        return [one[:n].cpu().numpy() for one, n in zip(given.sum(-1), lengths, strict=True)]


class Jacobians:
    """P of one sentence at given nodes: words (S, H), baseline (S, H), nodes (K,) -> (S, D)."""

    def __init__(self, model: Any, sentence: str) -> None:
        self.transformer, tokenizer = parts(model)
        self.transformer.eval().requires_grad_(False)
        table = self.transformer.get_input_embeddings()
        ids = torch.tensor(tokenizer(sentence)["input_ids"], device=table.weight.device)
        self.words = table(ids).detach()
        self.start = self.words.clone()
        self.start[1:-1] = table.weight[tokenizer.pad_token_id].detach()
        self.ways = self.words - self.start

    def _embedding(self, words: Tensor) -> Tensor:
        return self.transformer(inputs_embeds=words).last_hidden_state.mean(1)

    def by_backward_passes(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """One backward pass a dimension over all nodes in a batch, as xsbert does."""
        points = (self.start + nodes[:, None, None] * self.ways).requires_grad_()
        embeddings = self._embedding(points)
        columns = []
        for dimension in range(embeddings.shape[1]):
            (gradient,) = torch.autograd.grad(
                embeddings[:, dimension].sum(), points, retain_graph=True
            )
            mean = torch.einsum("k,ksh->sh", weights, gradient)
            columns.append((mean * self.ways).sum(-1))
        return torch.stack(columns, 1)

    def by_vmap(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """torch.func's forward mode, a node at a time."""
        which = torch.eye(len(self.words), device=nodes.device)[1:-1]
        total = self.words.new_zeros(*self.words.shape)
        for node, weight in zip(nodes, weights, strict=True):
            point = self.start + node * self.ways

            def slope(one: Tensor, point: Tensor = point) -> Tensor:
                way = one[:, None] * self.ways
                return jvp(lambda x: self._embedding(x[None])[0], (point,), (way,))[1]

            with sdpa_kernel(SDPBackend.MATH):
                total[1:-1] += weight * vmap(slope)(which)
        return total


def partition(model: Any, sentence: str) -> NDArray[np.float64]:
    """The default explainer of shap for a text, on the strings it makes: a value for each word."""
    import shap  # noqa: PLC0415 - slow

    full = torch.from_numpy(model.encode([sentence]))

    def cosines(texts: Any) -> Any:
        embeddings = model.encode([str(text) for text in texts], convert_to_tensor=True)
        return F.cosine_similarity(embeddings.clone(), full, dim=1).numpy()

    explainer = shap.Explainer(cosines, shap.maskers.Text(model.tokenizer), silent=True)
    values: NDArray[np.float64] = explainer([sentence]).values[0]
    return values[1:-1]


def kernel_shap(game: Any, players: int, samples: int) -> NDArray[np.float64]:
    """The KernelExplainer of shap for a game: sets (M, n) of 0 and 1 -> values (M,)."""
    import numpy as np  # noqa: PLC0415 - beside shap
    import shap  # noqa: PLC0415 - slow

    explainer = shap.KernelExplainer(game, np.zeros((1, players)))
    found: NDArray[np.float64] = explainer.shap_values(
        np.ones((1, players)), nsamples=samples, silent=True
    )[0]
    return found
