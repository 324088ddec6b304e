"""The contrastive loss of open_clip, fused, on one process and on several."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simcse_fast import collectives, distributed
from simcse_fast.losses.across_ranks import over_ranks
from simcse_fast.losses.info_nce import info_nce

if TYPE_CHECKING:
    from simcse_fast.distributed import Ranks


class ClipLoss(nn.Module):
    """open_clip's `ClipLoss`, without its two N x N matrices of logits.

    loss = mean of the cross-entropies of texts given images and of images given texts,
    with logits = logit_scale * image_features @ text_features.T + logit_bias

    The arguments are those of open_clip, which need not be installed. With `world_size` > 1 the
    features of all processes of the default group are the columns, without an N x N matrix on any:

    - `local_loss`: a process's loss is that of its own rows. `gather_with_grad` returns gradients
      to the features of the other processes; without it what is gathered is constant.
    - otherwise every process has the loss of the whole batch. Features get its gradient, with
      `gather_with_grad` times `world_size`, as open_clip's own gathering gives it.

    Processes may bring batches of different sizes. `use_horovod` with `world_size` > 1 takes
    open_clip's own loss, with one warning.

    Args:
        local_loss: several processes: each computes the rows of its own batch only.
        gather_with_grad: several processes: gradients return through the gathered features.
        cache_labels: keep what `get_ground_truth` gives from call to call.
        rank: number of this process in the default group.
        world_size: number of processes in the default group.
        use_horovod: several processes: gather by horovod.

    Raises:
        ModuleNotFoundError: use_horovod with world_size > 1, and open_clip is not installed.

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
        self._kept: tuple[int, torch.device, Tensor] | None = None
        if world_size > 1 and use_horovod:
            self._original = _original_class()(
                local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod
            )

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of each row's positive, as the original gives it: (num_logits,) int64."""
        if self._original is not None:
            return self._original.get_ground_truth(device, num_logits)  # type: ignore[no-any-return]
        if self._kept is not None and self._kept[:2] == (num_logits, device):
            return self._kept[2]
        labels = torch.arange(num_logits, device=device)
        if self.world_size > 1 and self.local_loss:
            labels = labels + num_logits * self.rank
        if self.cache_labels:
            self._kept = num_logits, device, labels
        return labels

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits per image and per text, as the original gives them.

        (N, N) each; on several processes (N of all, N of all), or with `local_loss` (N, N of all).

        For code that looks at logits; the loss itself never holds them.
        """
        if self._original is not None:
            return self._original.get_logits(  # type: ignore[no-any-return]
                image_features, text_features, logit_scale, logit_bias=logit_bias
            )
        images, texts = image_features, text_features
        if self.world_size > 1:
            images, texts = self._gathered(image_features, text_features)
        if not self.local_loss:
            image_features, text_features = images, texts
        per_image = logit_scale * image_features @ texts.T
        per_text = logit_scale * text_features @ images.T if self.local_loss else per_image.T
        if logit_bias is None:
            return per_image, per_text
        # The original adds in place, there to two views of one matrix, and so twice.
        twice = self.world_size > 1 and not self.local_loss
        logit_bias = 2 * logit_bias if twice else logit_bias
        return per_image + logit_bias, per_text + logit_bias

    @distributed.outside_graphs
    def _gathered(self, image_features: Tensor, text_features: Tensor) -> list[Tensor]:
        """The features of all processes, with the gradients that the original gives them."""
        own = [image_features, text_features]
        sent = own if self.gather_with_grad else [x.detach() for x in own]
        ranks, rows = self._ranks(image_features), len(image_features)
        shares = distributed.agree(ranks, "ClipLoss", rows, rows, sent, {}, name="image_features")
        everything = collectives.gather(shares, sent)
        if self.gather_with_grad or self.local_loss:
            return everything
        before, after = shares.before, shares.before + rows
        return [
            torch.cat([all_rows[:before], mine, all_rows[after:]])
            for all_rows, mine in zip(everything, own, strict=True)
        ]

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
            ValueError: logit_scale or logit_bias holds more than one value, or logit_scale <= 0; or
                the processes do not fit together, or are not those of the default group.
            RuntimeError: another process was lost or late.
        """
        if self._original is not None:
            return self._original(  # type: ignore[no-any-return]
                image_features,
                text_features,
                logit_scale,
                logit_bias=logit_bias,
                output_dict=output_dict,
            )
        if self.world_size > 1:
            loss = self._of_all_ranks(image_features, text_features, logit_scale, logit_bias)
        else:
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

    @distributed.outside_graphs
    def _of_all_ranks(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
    ) -> Tensor:
        ranks = self._ranks(image_features)
        with distributed.announced(ranks):
            temperature = _temperature(logit_scale)
            if isinstance(logit_bias, Tensor):
                _check_single("logit_bias", logit_bias)
        # Each process computes its rows; `share` turns sums over the processes into what every
        # one of them would have found from all rows. See `sum_of_ranks`.
        share = 1.0 if self.gather_with_grad else 1 / ranks.size
        if not self.local_loss and isinstance(temperature, Tensor):
            of_scale = 1 / ranks.size if self.gather_with_grad else 1.0
            temperature = collectives.shared_parameter(ranks, temperature, share=of_scale)
        loss = over_ranks(
            ranks,
            image_features,
            text_features,
            temperature=temperature,
            symmetric=True,
            normalize=False,
            constant=self.local_loss and not self.gather_with_grad,
        )
        if self.local_loss:
            return loss
        return collectives.sum_of_ranks(ranks, loss, share=share) / ranks.size

    def _ranks(self, features: Tensor) -> Ranks:
        ranks = distributed.ranks_of("world")
        with distributed.announced(ranks):
            for name, found in (("world_size", ranks.size), ("rank", ranks.rank)):
                if (given := getattr(self, name)) != found:
                    raise ValueError(
                        f"{name}: expected {found}, as in the default group of torch.distributed, "
                        f"got {given}."
                    )
            distributed.check_device(ranks, "image_features", features)
        return ranks


def _original_class() -> type[nn.Module]:
    try:
        from open_clip.loss import ClipLoss as Original  # noqa: PLC0415  # heavy, and rarely needed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "use_horovod: several processes take open_clip's own loss, which cannot be "
            f"imported: {error}; run `pip install open_clip_torch`.",
            name=error.name,
        ) from error
    warnings.warn(
        "ClipLoss: open_clip's own computation runs, not the fused one: use_horovod=True.",
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
