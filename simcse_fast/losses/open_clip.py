"""The contrastive loss of open_clip, fused on one process."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from simcse_fast.losses.info_nce import info_nce


class ClipLoss(nn.Module):
    """open_clip's `ClipLoss`, without its two N x N matrices of logits.

    loss = mean of the cross-entropies of texts given images and of images given texts,
    with logits = logit_scale * image_features @ text_features.T + logit_bias

    The arguments are those of open_clip. With `world_size` > 1 open_clip's own loss runs instead,
    with one warning; open_clip need not be installed otherwise.

    Args:
        local_loss: several processes: each computes the rows of its own batch only.
        gather_with_grad: several processes: gradients return through the gathered features.
        cache_labels: several processes: keep the labels from call to call.
        rank: number of this process.
        world_size: number of processes.
        use_horovod: several processes: gather by horovod.

    Raises:
        ModuleNotFoundError: world_size > 1 and open_clip is not installed.

    Reference: Radford et al. 2021, arXiv 2103.00020.

    Example:
        >>> loss = ClipLoss()
        >>> round(loss(torch.eye(4), torch.eye(4), logit_scale=1.0).item(), 4)  # log(1 + 3 / e)
        0.7437
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self._original: Any = None
        if world_size > 1:
            self._original = _original_class()(
                local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod
            )

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of each row's positive, as the original gives it: (num_logits,) int64."""
        if self._original is not None:
            return self._original.get_ground_truth(device, num_logits)  # type: ignore[no-any-return]
        return torch.arange(num_logits, device=device)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits per image and per text, (N, N) each, as the original gives them.

        For code that looks at logits; the loss itself never holds them.
        """
        if self._original is not None:
            return self._original.get_logits(  # type: ignore[no-any-return]
                image_features, text_features, logit_scale, logit_bias=logit_bias
            )
        logits = logit_scale * image_features @ text_features.T
        logits = logits if logit_bias is None else logits + logit_bias
        return logits, logits.T

    def forward(
        self,
        image_features: Tensor,  # (N, D)
        text_features: Tensor,  # (N, D)
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch.

        Args:
            image_features: (N, D), used as they are (open_clip's models return unit rows).
            text_features: (N, D), row i belongs to image i.
            logit_scale: one value > 0 that multiplies the logits; a tensor gets its gradient.
            logit_bias: one value added to all logits; it changes nothing and gets gradient 0.
            output_dict: return {"contrastive_loss": loss}.

        Returns:
            0-d tensor, fp32 (fp64 for fp64 input), or a dictionary that holds it.

        Raises:
            ValueError: logit_scale or logit_bias holds more than one value, or logit_scale <= 0.
        """
        if self._original is not None:
            return self._original(  # type: ignore[no-any-return]
                image_features,
                text_features,
                logit_scale,
                logit_bias=logit_bias,
                output_dict=output_dict,
            )
        loss = info_nce(
            image_features,
            text_features,
            temperature=_temperature(logit_scale),
            symmetric=True,
            normalize=False,
        )
        if isinstance(logit_bias, Tensor):
            _check_single("logit_bias", logit_bias)
            loss = loss + (0 * logit_bias.sum()).to(loss)
        return {"contrastive_loss": loss} if output_dict else loss


def _original_class() -> type[nn.Module]:
    try:
        from open_clip.loss import ClipLoss as Original  # noqa: PLC0415  # heavy, and rarely needed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "world_size: more than one process takes open_clip's own loss, which cannot be "
            f"imported: {error}; run `pip install open_clip_torch`.",
            name=error.name,
        ) from error
    warnings.warn(
        "ClipLoss: open_clip's own computation runs, not the fused one: world_size > 1.",
        stacklevel=3,
    )
    return Original  # type: ignore[no-any-return]


def _temperature(logit_scale: Tensor | float) -> Tensor | float:
    """1 / logit_scale; in fp64, so that the way there and back rounds nothing."""
    if isinstance(logit_scale, Tensor):
        _check_single("logit_scale", logit_scale)
        single = logit_scale.reshape(()) if logit_scale.ndim else logit_scale
        return single.double().reciprocal()
    if not logit_scale > 0:
        raise ValueError(f"logit_scale: expected > 0, got {logit_scale}.")
    return 1 / float(logit_scale)


def _check_single(name: str, x: Tensor) -> None:
    if x.numel() != 1:
        raise ValueError(f"{name}: expected one value, got shape {tuple(x.shape)}.")
