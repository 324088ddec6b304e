"""The page: one HTML file with everything in it."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from simcse_fast.attribution.pieces import percent
from simcse_fast.demo.findings import known

if TYPE_CHECKING:
    from simcse_fast.demo.transformer import Explained, Weights
    from simcse_fast.demo.weights import Share

FULL_SHADE = 4.0  # times the even share
DEEPEST = 0.75
NEIGHBOUR_LETTERS = 200
DIFFERENCES = ("loss_difference", "gradient_difference")


def page(results: dict[str, Any], figures: dict[str, dict[str, bytes]]) -> str:
    """Fill the template; every figure is embedded, nothing is fetched."""
    source = (files("simcse_fast.demo") / "report.html").read_text(encoding="utf-8")
    return Template(source).substitute(
        name=escape(results["text"]["name"]),
        subtitle=escape(subtitle(results)),
        findings="".join(f"<li>{escape(finding)}</li>" for finding in results["findings"]),
        training_text=escape(training_text(results)),
        loss_figure=picture(figures["loss"], "loss by step, and held-out accuracy by step"),
        loss_caption=escape(loss_caption(results["training"])),
        norms_figure=picture(figures["norms"], "length of word vectors against information"),
        norms_caption=escape(norms_caption(results["words"])),
        sentences_text=escape(
            f"The {len(results['sentences'])} sentences were drawn at random from those held out."
        ),
        sentences="".join(map(sentence_row, results["sentences"])),
        transformer=transformer_section(results["transformer"]),
        nearest_text=escape(nearest_text(results)),
        neighbours="".join(map(neighbour_rows, results["nearest"])),
        timing_text=escape(timing_text(results)),
        costs_figure=picture(figures["costs"], "time and memory of both losses"),
        costs_caption=(
            "Medians of rounds in which both losses take turns; memory is the peak of the process "
            "during a loss's first pass at that size, over what it held before."
        ),
        timing_rows="".join(map(timing_row, results["timing"])),
        run_text=run_text(results),
    )


def picture(images: dict[str, bytes], description: str) -> str:
    """The light and the dark version of a figure."""
    light, dark = (b64encode(images[theme]).decode() for theme in ("light", "dark"))
    return (
        '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}">'
        f'<img alt="{escape(description)}" src="data:image/png;base64,{light}"></picture>'
    )


def subtitle(results: dict[str, Any]) -> str:
    """What was read, and how long it took."""
    text = results["text"]
    cut = f" (the first {text['sentences']:,} of the text)" if text["cut"] else ""
    return (
        f"{text['name']}: {text['sentences']:,} different sentences{cut}, {text['tokens']:,} "
        f"words, {text['vocabulary']:,} of them different. {results['seconds']:.0f} seconds on "
        f"{results['threads']} threads, from text to this page."
    )


def training_text(results: dict[str, Any]) -> str:
    """What was done, with its settings."""
    training = results["training"]
    return (
        f"The words of each sentence are dealt at random into two halves, anew in every pass; each "
        f"half must find the other among the {training['batch_size']:,} of its batch "
        f"(MultipleNegativesRankingLoss of simcse_fast.losses, temperature "
        f"{training['temperature']}, Adam, learning rate {training['learning_rate']}). The word "
        f"vectors start at random with {training['width']} numbers each. The result is a normal "
        "SentenceTransformer."
    )


def loss_caption(training: dict[str, Any]) -> str:
    """Where training stood at its end."""
    passes = training["steps"] * training["batch_size"] / training["sentences"]
    last = training["held_out"][-1]
    early = ""
    if training["steps"] < training["steps_asked"]:
        early = (
            f" Training stopped at its time limit, after {training['steps']:,} of "
            f"{training['steps_asked']:,} steps."
        )
    return (
        f"{training['steps']:,} steps, {passes:.1f} passes over {training['sentences']:,} "
        f"sentences, {training['sentences_per_second']:,.0f} sentences a second.{early} Right: "
        f"{training['held_out_sentences']:,} sentences that were never trained on; loss "
        f"{last['loss']:.2f}, chance is {100 / training['held_out_sentences']:.2f} %."
    )


def norms_caption(words: dict[str, Any]) -> str:
    """What the points are, and what they cannot tell."""
    return (
        f"{words['n']:,} words that occur at least {words['min_count']} times. The two kinds of "
        f"information are related (R² between them {words['r_squared']['between']:.2f}), and "
        "information gain counted from a small corpus is too high for rare words; so part of "
        "either R² is the other's."
    )


def nearest_text(results: dict[str, Any]) -> str:
    """Where the queries come from."""
    source = "written for this page" if results["queries_written"] else "held out from training"
    return (
        f"The three sentences nearest to each query by cosine, among all "
        f"{results['text']['sentences']:,}. The queries are {source}."
    )


def timing_text(results: dict[str, Any]) -> str:
    """What the batches hold."""
    width = results["training"]["width"]
    return (
        f"Both compute the same number. At D = {width} the batches are embeddings of the trained "
        "encoder, at other widths random vectors."
    )


def sentence_row(sentence: dict[str, list[Share]]) -> str:
    """One sentence, shaded before and after."""
    return f"<tr><td>{shaded(sentence['before'])}</td><td>{shaded(sentence['after'])}</td></tr>"


def transformer_section(transformer: dict[str, Any]) -> str:
    """Sentences as both methods weigh their words, or why they are not there."""
    if transformer["left_out"]:
        return f"<p>Left out: {escape(transformer['left_out'])}.</p>"
    rows = "".join(map(explained_row, transformer["sentences"]))
    return (
        f"<p>{escape(transformer_text(transformer))}</p>"
        '<div class="scroll"><table class="pair"><tr><th>Integrated Gradients</th>'
        f"<th>Shapley values</th></tr>{rows}</table></div>"
        f"<p>{escape(comparison_text(transformer))}</p>"
    )


def transformer_text(transformer: dict[str, Any]) -> str:
    """What was weighed, and how to read it."""
    shown, asked = len(transformer["sentences"]), transformer["asked"]
    early = f" The time limit left out {asked - shown} of {asked} sentences." * (shown < asked)
    return (
        f"{transformer['model']}, six layers of 384 numbers, was not trained here: it comes "
        "already contrastively trained. A word has no fixed weight in it, but one in each "
        "sentence; the weights of a sentence's words add up to the cosine of its embedding with "
        "itself (1) less that of an empty sentence's with it. Each word is shaded by its share of "
        "that sum, on the scale of the table above (point at it to read it). The empty sentence is "
        "padding for Integrated Gradients and masked words for Shapley values, so the two need "
        "not agree even without error; the latter come from a sample of the sets of words. Tokens "
        f"beyond the {transformer['longest']}th have no weight.{early}"
    )


def comparison_text(transformer: dict[str, Any]) -> str:
    """How the methods agree, and what the weights have to do with the words' information."""
    both, sentences = transformer["agreement"], []
    if both:
        within = [each for each in both["spearman_within"] if each is not None]
        span = f"; within single sentences {min(within):.2f} to {max(within):.2f}" if within else ""
        sentences.append(
            f"Both methods' weights of {both['n']} words (punctuation included) in "
            f"{both['sentences']} sentences have a rank correlation of {known(both['spearman'])} "
            f"(Pearson {known(both['pearson'])}{span})."
        )
    kinds = {"integrated_gradients": "Integrated Gradients", "shapley_values": "Shapley values"}
    own = {name: transformer["information"][method] for method, name in kinds.items()}
    told = "; ".join(
        f"by {name} {known(one['information_gain'])} with information gain and "
        f"{known(one['self_information'])} with self-information ({one['n']} words)"
        for name, one in own.items()
        if one["n"]
    )
    if told:
        sentences.append(
            "Rank correlations of a word's mean share with what the corpus says of it, over the "
            f"words that are in the plot above: {told}."
        )
    return " ".join(sentences)


def explained_row(one: Explained) -> str:
    """One sentence, shaded by both methods."""
    cells = (
        weighed(one.integrated_gradients, "nodes on the path"),
        weighed(one.shapley_values, "sets of words"),
    )
    return f"<tr><td>{cells[0]}</td><td>{cells[1]}</td></tr>"


def weighed(weights: Weights | None, looks: str) -> str:
    """A shaded sentence above its figures."""
    if weights is None:
        return '<span class="soft">left out: the time limit was reached</span>'
    return (
        f'{shaded(weights.pieces)}<div class="soft">{weights.looks:,} {looks}, estimated error '
        f"{escape(percent(weights.error))}</div>"
    )


def shaded(pieces: list[Share]) -> str:
    """Words on a background as deep as their share over the even share."""
    words = sum(piece.share is not None for piece in pieces)
    return "".join(
        escape(piece.text)
        if piece.share is None
        else f'<span class="w" style="--a:{depth(piece.share * words):.2f}" '
        f'title="{100 * piece.share:.1f} %">{escape(piece.text)}</span>'
        for piece in pieces
    )


def depth(times_even: float) -> float:
    """Opacity of the shade."""
    return DEEPEST * min(max(times_even, 0) / FULL_SHADE, 1)


def neighbour_rows(query: dict[str, Any]) -> str:
    """A query above what was nearest before and after."""
    lists = (
        "".join(
            f'<div><span class="cos">{cosine:.2f}</span>{escape(clipped(text))}</div>'
            for cosine, text in query[moment]
        )
        for moment in ("before", "after")
    )
    cells = "".join(f"<td>{entries}</td>" for entries in lists)
    return (
        f'<tr><td class="query" colspan="2">{escape(query["query"])}</td></tr>'
        f"<tr><th>before training</th><th>after training</th></tr><tr>{cells}</tr>"
    )


def clipped(text: str) -> str:
    """The beginning of a long sentence."""
    whole = len(text) <= NEIGHBOUR_LETTERS
    return text if whole else text[:NEIGHBOUR_LETTERS].rsplit(" ", 1)[0] + " \u2026"


def timing_row(one: dict[str, Any]) -> str:
    """One size: time and memory of both, and how far they are apart."""
    cells = [
        *(cost(one[kind]) for kind in ("textbook", "fused")),
        f"{one['speedup']:.2f}x",
        str(one["rounds"]),
        *(f"{one[name]:.0e}" if one[name] else "0" for name in DIFFERENCES),
    ]
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f"<tr><td>N = {one['rows']:,}, D = {one['width']}</td>{numbers}</tr>"


def cost(one: dict[str, float | None]) -> str:
    """Milliseconds and megabytes."""
    memory = "memory not measured" if one["megabytes"] is None else f"{one['megabytes']:,.0f} MB"
    return f"{one['milliseconds']:,.0f} ms, {memory}"


def run_text(results: dict[str, Any]) -> str:
    """How to have it again."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"<code>{escape(results['command'])}</code><br>{escape(versions)}; loss back-end: "
        f"{escape(results['backend'])}. The same seed gives the same encoder on the same machine. "
        "Beside this page: <code>results.json</code> with every figure, <code>model</code> for "
        '<code>SentenceTransformer("model")</code>, and the plots.'
    )
