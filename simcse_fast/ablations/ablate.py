"""The public function: what is varied, on what, how often."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.errors import InputError
from simcse_fast.training.options import check_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.ablations.result import Ablation


def ablate(
    model: str | Path,
    sentences: Any = None,
    *,
    development: Any,
    output: str | Path,
    vary: str | Sequence[str] | Mapping[str, Mapping[str, Any]],
    test: Any = None,
    triplets: Any = None,
    seeds: int = 5,
    trajectory_steps: int = 10,
    trajectories: int = 1,
    keep_models: bool = False,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
    **training: Any,
) -> Ablation:
    """Train the same model again and again with one thing changed, and compare what comes of it.

    Each run is one configuration with one seed, from the model as it is in its folder. A run is a
    file in `output`, so that an ablation that was stopped goes on where it was, and configurations
    that come to the same options are trained once.

    Args:
        model: name or folder of a SentenceTransformer or of a plain transformer.
        sentences: to train on, as `unsupervised` of `train`; for all groups but "hard_negatives".
        development: pairs with scores, 0 to 5, as `evaluate` of `train`: of them are Spearman's
            correlation, alignment (of pairs above 4) and uniformity (of all their sentences).
        output: folder for runs, tables and plots.
        vary: groups of configurations: "dropout" (0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.5, one mask for
            both views), "augmentation" (none, crop and delete 10, 20 and 30 %, delete one word),
            "pooling" (all that `train` has), "temperature" (0.001, 0.01, 0.05, 0.1, 1), "batch" (64
            to 65,536 by factors of 4, with as many sentences in all), "hard_negatives" (with and
            without those of `triplets`), "objective" (InfoNCE, the textbook's, Contrastive
            Tension); or configurations of your own, a mapping of names to options of `train`.
        test: pairs with scores to report on.
        triplets: as of `train`, with negatives.
        seeds: runs of each configuration.
        trajectory_steps: steps between points of a trajectory of alignment and uniformity.
        trajectories: so many seeds have one; each point costs an evaluation.
        keep_models: keep the models, in `output/models`.
        device: "cpu", or None for the best there is.
        say: called with each sentence on what is being done.
        **training: options of `train` for all runs, such as `steps`, `batch_size` or
            `learning_rate`; defaults are those of `train`.

    Returns:
        Rows, their summary, tables and plots, which are in `output` too.

    Raises:
        ValueError, TypeError: an argument or the data cannot be used, a group makes no sense for
            this model, or `output` holds runs of other settings; the message says which.
        OSError: something cannot be written.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.

    Reference: Gao, Yao and Chen 2021, arXiv 2104.08821.

    Example:
        >>> encoder.save("start", create_model_card=False)  # any folder or name will do
        >>> texts = ["cats chase mice.", "mice chase cats.", "cats.", "mice."]
        >>> pairs = [(texts[0], texts[1], 5.0), (texts[2], texts[3], 1.0)]
        >>> options = {"steps": 1, "batch_size": 2, "seeds": 2, "development": pairs}
        >>> vary = {"calm": {"dropout": 0.0}, "wild": {"dropout": 0.5}}
        >>> found = ablate("start", texts, output="runs", vary=vary, **options)
        >>> [(one["configuration"], one["runs"]) for one in found.summary()]
        [('calm', 2), ('wild', 2)]
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            f"model: expected a name or a folder, from which each run begins, got "
            f"{type(model).__name__}"
        )
    if not isinstance(vary, str | Mapping | Sequence):
        raise TypeError(f"vary: expected names of groups or a mapping, got {type(vary).__name__}")
    for name, value, least in (
        ("seeds", seeds, 1),
        ("trajectory_steps", trajectory_steps, 1),
        ("trajectories", trajectories, 0),
    ):
        check_whole(name, value, least)
    if sentences is None and triplets is None:
        raise InputError("sentences: expected sentences or triplets to train on, got neither")
    run = import_module("simcse_fast.ablations.run")  # torch's and transformers' imports wait here
    result: Ablation = run.run(
        run.Request(
            model=os.fspath(model),
            sentences=sentences,
            triplets=triplets,
            development=development,
            test=test,
            output=Path(output),
            vary=vary if isinstance(vary, str | Mapping) else list(vary),
            seeds=seeds,
            training=training,
            trajectory_steps=trajectory_steps,
            trajectories=trajectories,
            keep_models=keep_models,
            device=device,
        ),
        say or (lambda _: None),
    )
    return result
