"""A transformers model and its tokenizer as one encoder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from simcse_fast.encoding import BATCH, check_sentences, check_whole, evaluating
from simcse_fast.errors import InputError
from simcse_fast.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = {"avg_first_last": 1, "avg_top2": -2}  # the state that is averaged with the last
UNLIMITED = 1_000_000  # a tokenizer that knows no longest text says some huge number
# What mteb tells an encoder besides its texts; a model without prompts has no use for it.
OF_MTEB = {"task_metadata", "hf_split", "hf_subset", "prompt_type"}


class PairEncoder:
    """A transformers model and its tokenizer, with `encode` as a SentenceTransformer has it.

    `encode` takes texts, batch_size, show_progress_bar, normalize_embeddings, convert_to_numpy and
    convert_to_tensor, with the same results, but on the CPU; no prompts, precisions or devices.
    `mteb.evaluate` takes it as a model.

    Args:
        transformer: an encoder without a head, as `AutoModel` loads it.
        tokenizer: its tokenizer, with a token to pad with.
        pooling: "cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean" or "lasttoken", as
            sentence-transformers names them; as SimCSE does, "pooler" (Linear + Tanh of the model
            over its first token), "avg_first_last" or "avg_top2" (the mean of two layers' tokens).

    Raises:
        TypeError: transformer is no torch module.
        ValueError: the pooling is unknown, or the tokenizer cannot pad.
    """

    def __init__(self, transformer: nn.Module, tokenizer: Any, *, pooling: str = "mean") -> None:
        from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: PLC0415 - slow

        if not isinstance(transformer, nn.Module) or not callable(tokenizer):
            got = f"({type(transformer).__name__}, {type(tokenizer).__name__})"
            raise TypeError(f"model: expected a pair (transformers model, tokenizer), got {got}.")
        known = ("pooler", *LAYERS, *Pooling.POOLING_MODES)
        if pooling not in known:
            raise ValueError(f"pooling: expected one of {', '.join(known)}; got {pooling!r}.")
        if getattr(tokenizer, "pad_token_id", None) is None:
            raise InputError(
                f"model: {type(tokenizer).__name__} has no pad_token; set one to encode batches."
            )
        mode = "mean" if pooling == "pooler" or pooling in LAYERS else pooling
        self.transformer, self.tokenizer, self.pooling = transformer, tokenizer, pooling
        self.longest = longest_text(tokenizer, transformer, None)
        self._takes = set(inspect.signature(transformer.forward).parameters)
        self._pool = Pooling(1, pooling_mode=mode)  # the width is only for a saved configuration

    def encode(
        self,
        sentences: Any,
        *,
        batch_size: int = BATCH,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """Embeddings of sentences.

        Args:
            sentences: N texts, one text, or batches that hold them under "text", as mteb gives
                them.
            batch_size: sentences at once.
            show_progress_bar: on a terminal.
            normalize_embeddings: divide each by its length.
            convert_to_numpy: give an array; without it, and without convert_to_tensor, a list.
            convert_to_tensor: give a tensor.
            others: what mteb tells besides.

        Returns:
            (N, D) fp32 array or tensor on the CPU, or a list of N rows; (D,) of one text, (0,) of
            none.

        Raises:
            TypeError: an argument is unknown or of another kind.
            ValueError: batch_size < 1.
        """
        if unknown := set(others) - OF_MTEB:
            raise TypeError(f"{min(unknown)}: PairEncoder has no such argument.")
        check_whole("batch_size", batch_size, 1)
        texts = [sentences] if isinstance(sentences, str) else _flat(sentences)
        if texts:
            check_sentences(texts)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
        parts: list[Tensor] = []
        shown_as = (len(order), " sentences", "encoding")
        with evaluating(self.transformer), bar(*shown_as, show=show_progress_bar) as shown:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                parts.append(self.embed([texts[row] for row in rows]))
                if shown is not None:
                    shown.update(len(rows))
        embeddings = torch.cat(parts)[torch.tensor(order).argsort()] if parts else torch.zeros(0)
        if normalize_embeddings:
            embeddings = nn.functional.normalize(embeddings, dim=-1)
        if isinstance(sentences, str):
            embeddings = embeddings[0]
        if convert_to_tensor:
            return embeddings
        if convert_to_numpy:
            return embeddings.numpy()
        return embeddings if isinstance(sentences, str) else list(embeddings)

    def embed(self, texts: list[str]) -> Tensor:
        """One batch, (B, D) fp32 on the CPU."""
        limit = {} if self.longest is None else {"truncation": True, "max_length": self.longest}
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt", **limit)
        device = next(self.transformer.parameters()).device
        given = {name: ids.to(device) for name, ids in tokens.items() if name in self._takes}
        layers = {"output_hidden_states": True} if self.pooling in LAYERS else {}
        out = self.transformer(**given, **layers, return_dict=True)
        wanted = "pooler_output" if self.pooling == "pooler" else "last_hidden_state"
        states = getattr(out, wanted, None)
        if states is None:
            raise InputError(
                f"model: {type(self.transformer).__name__} returns no {wanted}, which pooling "
                f"{self.pooling} needs; expected an encoder without a head, as AutoModel loads it."
            )
        if self.pooling != "pooler":
            if layers:
                states = (out.hidden_states[LAYERS[self.pooling]] + states) / 2
            mask = tokens["attention_mask"].to(device)
            features = {"token_embeddings": states, "attention_mask": mask}
            states = self._pool(features)["sentence_embedding"]
        embeddings: Tensor = states.float().cpu()
        return embeddings

    def similarity(self, a: Any, b: Any) -> Tensor:
        """Cosines of all rows of a with all rows of b, (N, M)."""
        found: Tensor = _unit(a) @ _unit(b).T
        return found

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Cosines row by row, (N,)."""
        return (_unit(a) * _unit(b)).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb files results under."""
        from mteb.models.model_meta import ModelMeta  # noqa: PLC0415 - optional

        name = getattr(self.transformer.config, "name_or_path", "") or "transformer"
        return ModelMeta.create_empty({"name": f"{name} {self.pooling}"})


def longest_text(tokenizer: Any, transformer: nn.Module, own: int | None) -> int | None:
    """The least of what the model, its tokenizer and its positions allow."""
    positions = getattr(transformer.config, "max_position_embeddings", None)
    embeddings = getattr(transformer, "embeddings", None)
    table: Any = getattr(embeddings, "position_embeddings", None)
    if positions and getattr(table, "padding_idx", None) is not None:
        positions -= table.padding_idx + 1  # RoBERTa and MPNet count from behind it
    limits = [own, tokenizer.model_max_length, positions]
    return min((n for n in limits if n and n < UNLIMITED), default=None)


def _flat(given: Iterable[Any]) -> list[Any]:
    """Texts, out of the batches of a DataLoader if need be."""
    texts: list[Any] = []
    for one in given:
        texts += one["text"] if isinstance(one, Mapping) else [one]
    return texts


def _unit(rows: Any) -> Tensor:
    return nn.functional.normalize(torch.as_tensor(rows).float(), dim=-1)
