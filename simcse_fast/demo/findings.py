"""What the figures of a run say, in sentences that hold whichever way they turned out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from simcse_fast.demo.weights import Words

CLOSE = 0.02  # differences of R squared below this are called equal
EXAMPLES = 6


def findings(results: dict[str, Any], words: Words) -> list[str]:
    """Six sentences: the loss, the training, the theory twice, a transformer, the counting."""
    return [
        loss_finding(results["timing"]),
        training_finding(results["training"]),
        theory_finding(results["words"]["r_squared"]),
        words_finding(words),
        transformer_finding(results["transformer"]),
        counting_finding(results["information"]),
    ]


def loss_finding(timing: list[dict[str, Any]]) -> str:
    """The largest batch that was timed."""
    one = max(timing, key=lambda each: (each["rows"], each["width"]))
    textbook, fused = one["textbook"], one["fused"]
    faster = one["speedup"] >= 1
    ratio = one["speedup"] if faster else 1 / one["speedup"]
    sentence = (
        f"The fused loss took {fused['milliseconds']:,.0f} ms, the textbook loss "
        f"{textbook['milliseconds']:,.0f} ms ({ratio:.2f}x {'faster' if faster else 'slower'}; "
        f"N = {one['rows']:,}, D = {one['width']}, forward and backward)"
    )
    if fused["megabytes"] is None:
        return sentence + "; memory cannot be measured on this system."
    return (
        f"{sentence}, with {fused['megabytes']:,.0f} MB of extra memory against "
        f"{textbook['megabytes']:,.0f} MB."
    )


def training_finding(training: dict[str, Any]) -> str:
    """Speed, and whether it learned."""
    before, after = training["held_out"][0], training["held_out"][-1]
    return (
        f"{training['steps']:,} steps at batch {training['batch_size']:,} took "
        f"{training['seconds']:.0f} s ({training['sentences_per_second']:,.0f} sentences/s); "
        f"of {training['held_out_sentences']:,} held-out half sentences "
        f"{100 * after['accuracy']:.1f} % find their other half "
        f"(untrained: {100 * before['accuracy']:.1f} %)."
    )


def theory_finding(r_squared: dict[str, dict[str, float]]) -> str:
    """Which information explains the lengths of the word vectors."""
    gain, rarity = r_squared["after"]["information_gain"], r_squared["after"]["self_information"]
    verdict = "as much as"
    if abs(gain - rarity) >= CLOSE:
        verdict = "more than" if gain > rarity else "less than"
    return (
        f"After training, information gain explains {100 * gain:.0f} % of the variance of the word "
        f"vectors' lengths, {verdict} self-information ({100 * rarity:.0f} %); before training "
        f"{100 * r_squared['before']['information_gain']:.0f} % and "
        f"{100 * r_squared['before']['self_information']:.0f} %."
    )


def words_finding(words: Words) -> str:
    """The longest and the shortest vectors."""
    order = np.argsort(words.after)
    shortest = ", ".join(words.words[i] for i in order[:EXAMPLES])
    longest = ", ".join(words.words[i] for i in order[::-1][:EXAMPLES])
    ratio = words.after[order[-1]] / max(words.after[order[0]], 1e-12)
    return (
        f"The longest word vectors: {longest}; the shortest: {shortest}; the extremes are "
        f"{ratio:.0f}x apart."
    )


def transformer_finding(transformer: dict[str, Any]) -> str:
    """How far two methods agree on its words, and what these have to do with information."""
    name, agreement = transformer["model"], transformer.get("agreement")
    if transformer["left_out"]:
        return f"Word weights under {name} were left out: {transformer['left_out']}."
    sentence = f"Under {name}, already trained, word weights by Integrated Gradients"
    if agreement:
        sentence += (
            f" and by Shapley values have a rank correlation of {known(agreement['spearman'])} "
            f"({agreement['n']} words); the former have one"
        )
    else:
        sentence += " have a rank correlation"
    own = transformer["information"]["integrated_gradients"]
    return (
        f"{sentence} of {known(own['information_gain'])} with information gain and of "
        f"{known(own['self_information'])} with self-information ({own['n']} words)."
    )


def known(correlation: float | None) -> str:
    """A correlation as people read it."""
    return "unknown size" if correlation is None else f"{correlation:.2f}"


def counting_finding(information: dict[str, Any]) -> str:
    """Speed of the counts."""
    return (
        f"Information gain of {information['words']:,} words over {information['tokens']:,} tokens "
        f"was counted in {information['seconds']:.1f} s, compilation included."
    )
