"""The public function: from two encoders, a corpus and sentences to what training has changed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.studies.options import Options, names_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from simcse_fast.studies.result import Study


def study(
    before: Any,
    after: Any,
    corpus: Any,
    sentences: Any = None,
    *,
    methods: Any = ("ig", "shap"),
    quantities: Any = ("information_gain", "self_information"),
    output: str | os.PathLike[str] | None = None,
    limit: int | None = 2000,
    norm_limit: int | None = 300,
    samples: int | str = 128,
    min_count: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    pooling: str | None = None,
    device: str | None = None,
    resume: bool = True,
    progress: bool = True,
    say: Callable[[str], object] | None = None,
) -> Study:
    """Do encoders weight informative words, and more so after contrastive training than before?

    weight_i = alpha + beta * information(w_i) + error_i

    For each word of each sentence its weight in the embedding, relative to an even share, is
    regressed on what a corpus tells of the word: information gain KL(w), self-information
    -log P(w). R squared, slope, rank correlation, and R squared that information gain adds to
    self-information, with intervals from a bootstrap over sentences; wherever a word stands, and
    for its mean weight; for all words, and by powers of ten of their count in the corpus.

    Static encoders have one weight a word: the length of its vector, raw, squared, whitened and
    weighted, as the theory has it (2 KL(w) ~ |u_w|^2). They need no sentences.

    Args:
        before: an encoder: a SentenceTransformer, a pair (transformers model, tokenizer), or the
            name or folder of one; None looks at `after` alone.
        after: the encoder that training made of it. Tokenizers may differ: scores of their pieces
            are added up to the corpus's words.
        corpus: what `information_gain` takes, or its table.
        sentences: texts (an iterable, a path to .txt, .jsonl, .parquet, or .tsv with pairs, whose
            two columns both count), or a mapping from names to such, a set each.
        methods: "ig", Integrated Gradients of the cosine of a sentence with itself; "shap", its
            Shapley values; "norms", the lengths |P_i| of each word's share in all dimensions, as
            the paper has it, which takes a pass for each token.
        quantities: "information_gain", "self_information", "corrected" (information gain less what
            chance gives).
        output: folder that keeps attributions, so that a stopped study goes on from there.
        limit: distinct sentences of a set at most, drawn at random; None takes all.
        norm_limit: the same of the method "norms".
        samples: coalitions of a sentence's Shapley values, see `shapley_values`.
        min_count: words that the corpus has less often are left out.
        resamples: of the bootstrap.
        seed: of the draw of sentences, of coalitions, and of the bootstrap.
        pooling: of plain transformers, which else take the mean: see `integrated_gradients`.
        device: where models that are named are loaded.
        resume: go on from attributions in `output`; False makes them anew.
        progress: show bars on a terminal.
        say: called with a sentence on what is being done.

    Returns:
        All regressions, the points behind them, tables, plots, and a page.

    Raises:
        ValueError, TypeError: an encoder, the corpus, the sentences or an option cannot be used;
            no word of the sentences is known.
        KeyboardInterrupt: with what is done so far.

    Reference: Kurita et al. 2023, arXiv 2310.15921.

    Example:
        >>> found = study(
        ...     None, encoder, ["cats chase mice", "cats sleep", "mice sleep"] * 9,
        ...     ["Cats chase mice.", "Mice sleep."], methods="ig", min_count=2, progress=False,
        ... )
        >>> found.coverage[0]["words"], found.coverage[0]["points"]
        (5, 5)
        >>> found.rows[0]["note"]  # two sentences are no study
        'too few points for a line: 5'
    """
    options = Options(
        *(names_of(methods), names_of(quantities), limit, norm_limit, samples, min_count),
        *(resamples, seed),
    )
    run = import_module("simcse_fast.studies.run")  # torch, which options need not wait for
    found: Study = run.run(
        {"before": before, "after": after},
        corpus,
        sentences,
        options,
        run.Settings(
            None if output is None else Path(output), pooling, device, resume, progress,
            say or (lambda _: None),
        ),
    )  # fmt: skip
    return found
