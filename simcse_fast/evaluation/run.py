"""The public function: from a model and tasks to scores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from simcse_fast.encoding import check_whole, encode, encoder_of
from simcse_fast.evaluation.folder import folder_of, read_tasks
from simcse_fast.evaluation.result import Evaluation
from simcse_fast.evaluation.tasks import STS, TRANSFER, choose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from simcse_fast.evaluation.correlation import Embed
    from simcse_fast.evaluation.folder import Parts
    from simcse_fast.evaluation.tasks import Task

SEEDS = 2**32  # of numpy's RandomState, which divides the folds


def evaluate(
    model: Any,
    tasks: str | Sequence[str] = "sts",
    data_dir: str | PathLike[str] | None = None,
    *,
    pooling: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    r"""Score a sentence encoder as the SimCSE papers do.

    STS: Spearman's correlation of cosines with people's scores, over the sub-sets together
    ("all"); their mean is in the details. Transfer: accuracy of logistic regression on frozen
    embeddings, in ten folds where the task has no test part; the strength of the penalty is chosen
    on rows that are not judged on. Alignment (mean |x - y|^2 of pairs with a score above 4) and
    uniformity (log mean exp(-2 |x - y|^2) over all pairs of distinct sentences) are taken on unit
    embeddings of STS-B's dev part, as SimCSE does; lower is better for both.

    Each distinct sentence of all tasks is encoded once.

    Args:
        model: a SentenceTransformer, a pair (transformers model, tokenizer), or any object with
            `encode(list of str)`.
        tasks: names or groups. "sts": STS12 STS13 STS14 STS15 STS16 STS-B SICK-R, test parts;
            "transfer": MR CR SUBJ MPQA SST2 TREC MRPC; "alignment", "uniformity"; "all": all of
            these. Besides, "STS-B dev", "STS-B train", "SICK-R dev", "SICK-R train", "alignment
            test" and "uniformity test". A task that is named must have its data; of a group, those
            that have none are skipped, which the result says.
        data_dir: folder with sts/*.tsv and transfer/*.tsv (columns `source score sentence1
            sentence2`; `label sentence`, for MRPC `label sentence1 sentence2`), or SentEval's
            data/downstream; None: SentEval's data as SimCSE's authors publish them, downloaded
            once from the hub.
        pooling: of a pair, see `simcse_fast.pair_encoder.PairEncoder`; "mean" by default.
        batch_size: sentences at once.
        seed: of the folds, in [0, 2**32).
        progress: show bars on a terminal.

    Returns:
        A mapping from task to Spearman's correlation or accuracy x 100.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: no such task, no data, or a line of them is not as expected; batch_size or
            seed is out of range; gold scores are all the same; embeddings are not finite.

    Reference: Gao, Yao and Chen 2021, arXiv 2104.08821, section 6 and appendix B; Conneau and
    Kiela 2018, arXiv 1803.05449.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> class Letters:
        ...     def encode(self, texts):
        ...         return np.array([[text.count(letter) for letter in "aeiou"] for text in texts])
        >>> Path("data/sts").mkdir(parents=True)
        >>> rows = ["source score sentence1 sentence2", "x 5 cat hat", "x 1 cat hit", "x 3 oat hat"]
        >>> with open("data/sts/stsb_test.tsv", "w") as file:
        ...     print(*("\t".join(row.split()) for row in rows), sep="\n", file=file)
        >>> result = evaluate(Letters(), ["STS-B"], "data", progress=False)
        >>> round(result["STS-B"], 2), result.details["STS-B"]["notes"]
        (100.0, ['3 pairs, where 1,379 are published'])
    """
    chosen = choose(tasks)
    check_whole("batch_size", batch_size, 1)
    check_whole("seed", seed, 0, SEEDS)
    model = encoder_of(model, pooling)
    if data_dir is None:
        from simcse_fast.evaluation.hub import downloaded  # noqa: PLC0415 - huggingface_hub

        folder = downloaded()
    else:
        folder = folder_of(data_dir)
    data, skipped = read_tasks(folder, chosen)
    began = time.perf_counter()
    embed = embedded(model, data, batch_size, progress=progress)
    seconds = {"encoding": time.perf_counter() - began}
    scores, details = {}, {}
    for task, parts in data.items():
        began = time.perf_counter()
        found = score(task, parts, embed, seed=seed, progress=progress)
        scores[task.name], details[task.name] = found
        seconds[task.name] = time.perf_counter() - began
    return Evaluation(scores, details, skipped, seconds)


def embedded(model: Any, data: dict[Task, Parts], batch_size: int, *, progress: bool) -> Embed:
    """A function from texts of the tasks to their embeddings, all of which are computed here."""
    texts = dict.fromkeys(
        text for parts in data.values() for rows in parts.values() for text in rows.texts
    )
    embeddings = encode(model, list(texts), batch_size=batch_size, progress=progress)
    places = {text: place for place, text in enumerate(texts)}

    def embed(wanted: list[str]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = embeddings[[places[text] for text in wanted]]
        return found

    return embed


def score(
    task: Task, parts: Parts, embed: Embed, *, seed: int, progress: bool
) -> tuple[float, dict[str, Any]]:
    """The score of a task and what is to be said about it."""
    rows: Any = parts
    if task.kind == TRANSFER:
        from simcse_fast.evaluation.transfer import classify  # noqa: PLC0415 - scikit-learn

        return classify(task, rows, embed, seed=seed, progress=progress)
    (pairs,) = rows.values()
    if task.kind == STS:
        from simcse_fast.evaluation.correlation import correlate  # noqa: PLC0415 - scipy

        return correlate(task, pairs, embed)
    from simcse_fast.evaluation.space import place  # noqa: PLC0415 - torch

    return place(task, pairs, embed)
