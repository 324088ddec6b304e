"""The drop-in losses against sentence-transformers' own: values, gradients, training, warnings."""

import inspect
import warnings

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    util,
)
from sentence_transformers.sentence_transformer import losses as originals
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers_cases import (
    DIRECTIONS,
    HARDNESS,
    name_of,
    sentences,
    silent,
    static_model,
)

from simcse_fast import losses

pytestmark = pytest.mark.usefixtures("one_thread")

# Pairs, triplets, and two negatives: own hard negatives in no, one and several column blocks.
COLUMNS = [
    pytest.param(2, id="pairs"),
    pytest.param(3, id="triplets"),
    pytest.param(4, id="tuples"),
]


def embeddings(columns, rows=13, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(columns, rows, width, generator=generator, dtype=torch.float64)
    drawn[1] += drawn[0]  # positives resemble their anchors, so that no term is negligible
    return [x.to(dtype).requires_grad_() for x in drawn]


def loss_and_gradients(loss, inputs):
    value = loss.compute_loss_from_embeddings(inputs, None)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("hardness", HARDNESS, ids=name_of)
@pytest.mark.parametrize("directions", DIRECTIONS, ids=name_of)
def test_every_option_gives_the_original_loss_and_gradients(directions, hardness, columns):
    for similarity, scale in ((util.cos_sim, 20.0), (util.dot_score, 0.7)):
        options = {**directions, **hardness, "similarity_fct": similarity, "scale": scale}
        ours = losses.MultipleNegativesRankingLoss(None, **options)
        original = originals.MultipleNegativesRankingLoss(None, **options)
        inputs = embeddings(columns)
        torch.testing.assert_close(
            loss_and_gradients(ours, inputs),
            loss_and_gradients(original, inputs),
            rtol=1e-11,
            atol=1e-12,
        )


@pytest.mark.parametrize("columns", COLUMNS)
def test_symmetric_gives_the_original_loss_and_gradients(columns):
    ours = silent(losses.MultipleNegativesSymmetricRankingLoss, None, scale=15.0)
    original = silent(originals.MultipleNegativesSymmetricRankingLoss, None, scale=15.0)
    inputs = embeddings(columns)
    expected = loss_and_gradients(original, inputs)
    torch.testing.assert_close(loss_and_gradients(ours, inputs), expected, rtol=1e-11, atol=1e-12)


def errors(loss, exact, dtype, draws=12):
    """Root mean square error of the loss and of the gradient; a single draw would be luck."""
    squares = []
    for seed in range(draws):
        inputs = embeddings(3, rows=67, width=32, dtype=dtype, seed=seed)
        found = loss_and_gradients(loss, inputs)
        truth = loss_and_gradients(exact, [x.detach().double().requires_grad_() for x in inputs])
        gradients = torch.stack(found[1:]) - torch.stack(truth[1:])
        squares.append([(found[0] - truth[0]).square(), gradients.square().mean()])
    return torch.tensor(squares).mean(0).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("directions", DIRECTIONS, ids=name_of)
def test_no_worse_than_the_original_in_its_own_type(directions, dtype):
    ours = losses.MultipleNegativesRankingLoss(None, **directions)
    original = originals.MultipleNegativesRankingLoss(None, **directions)
    ours, theirs = errors(ours, original, dtype), errors(original, original, dtype)
    assert (ours <= theirs).all(), (ours, theirs)


def test_one_row_and_no_gradient():
    inputs = [x.detach() for x in embeddings(2, rows=1)]
    for options in DIRECTIONS:
        ours = losses.MultipleNegativesRankingLoss(None, **options)
        original = originals.MultipleNegativesRankingLoss(None, **options)
        expected = original.compute_loss_from_embeddings(inputs, None)
        torch.testing.assert_close(ours.compute_loss_from_embeddings(inputs, None), expected)


def test_no_worse_than_the_original_under_autocast():
    ours = losses.MultipleNegativesRankingLoss(None)
    original = originals.MultipleNegativesRankingLoss(None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = errors(ours, original, torch.float32)
        theirs = errors(original, original, torch.float32)
    assert (ours <= theirs).all(), (ours, theirs)


def train(loss_class, columns, options, dtype, steps=50):
    model = static_model(dtype)
    loss = silent(loss_class, model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    history = []
    for step in range(steps):
        features = [model.preprocess(column) for column in sentences(columns, 16, seed=step % 4)]
        value = loss(features, torch.empty(0))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    return torch.tensor(history, dtype=torch.float64)


# Together: every direction, both partitions, every hardness mode, pairs, triplets and tuples,
# cosine and dot product; fp64 only where the growing dot products let fp32 runs drift apart.
RUNS = [
    pytest.param(2, {}, torch.float32, id="pairs"),
    pytest.param(3, {"scale": 5.0}, torch.float32, id="triplets-scale"),
    pytest.param(4, {**HARDNESS[1]}, torch.float32, id="tuples-in-batch-hardness"),
    pytest.param(3, {**HARDNESS[2]}, torch.float32, id="triplets-hard-negatives-hardness"),
    pytest.param(3, {**HARDNESS[3], **DIRECTIONS[7]}, torch.float32, id="all-negatives-all-joint"),
    pytest.param(2, {**DIRECTIONS[7]}, torch.float32, id="pairs-all-joint"),
    pytest.param(3, {**DIRECTIONS[2]}, torch.float32, id="triplets-joint-with-queries"),
    pytest.param(2, {**DIRECTIONS[9]}, torch.float32, id="pairs-per-direction"),
    pytest.param(3, {**DIRECTIONS[9], **HARDNESS[3]}, torch.float32, id="per-direction-hardness"),
    pytest.param(
        3,
        {"similarity_fct": util.dot_score, "scale": 1.0, **DIRECTIONS[7]},
        torch.float64,
        id="dot-product-fp64",
    ),
    pytest.param(2, {}, torch.float64, id="pairs-fp64"),
]


@pytest.mark.parametrize(("columns", "options", "dtype"), RUNS)
def test_training_follows_the_original(columns, options, dtype):
    ours = train(losses.MultipleNegativesRankingLoss, columns, options, dtype)
    original = train(originals.MultipleNegativesRankingLoss, columns, options, dtype)
    assert original[-5:].mean() < original[:5].mean()  # it learns
    torch.testing.assert_close(ours, original, rtol=0, atol=1e-5)


def test_symmetric_training_follows_the_original():
    ours = train(losses.MultipleNegativesSymmetricRankingLoss, 2, {}, torch.float32)
    original = train(originals.MultipleNegativesSymmetricRankingLoss, 2, {}, torch.float32)
    torch.testing.assert_close(ours, original, rtol=0, atol=1e-5)


def logged(loss_class, folder, wrap=lambda _model, loss: loss):
    model = static_model()
    columns = sentences(3, 64)
    names = ["anchor", "positive", "negative"]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=16,
        learning_rate=0.05,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(dict(zip(names, columns, strict=True))),
        loss=wrap(model, loss_class(model)),
    )
    trainer.train()
    card = model.model_card_data
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return history, card.citations, card.train_datasets[0]["loss"]["config_code"]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda _model, loss: loss, id="alone"),
        # A loss around the loss patches the model and calls it once per truncated width.
        pytest.param(lambda model, loss: MatryoshkaLoss(model, loss, [12, 6]), id="matryoshka"),
    ],
)
def test_the_trainer_logs_what_it_logs_with_the_original(tmp_path, wrap):
    pytest.importorskip("accelerate", reason="the trainer of transformers needs accelerate")
    ours = logged(losses.MultipleNegativesRankingLoss, tmp_path / "ours", wrap)
    original = logged(originals.MultipleNegativesRankingLoss, tmp_path / "original", wrap)
    assert len(ours[0]) == 6
    assert ours[0] == pytest.approx(original[0], abs=1e-5)
    assert ours[1:] == original[1:]  # citations and configuration in the model card


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MultipleNegativesRankingLoss", {}),
        ("MultipleNegativesRankingLoss", {**DIRECTIONS[7], **HARDNESS[2], "scale": 3.0}),
        ("MultipleNegativesRankingLoss", {**DIRECTIONS[9], "similarity_fct": util.dot_score}),
        ("MultipleNegativesSymmetricRankingLoss", {"gather_across_devices": True}),
    ],
)
def test_configuration_citation_and_class_are_the_originals(name, options):
    ours = silent(getattr(losses, name), None, **options)
    original = silent(getattr(originals, name), None, **options)
    assert ours.get_config_dict() == original.get_config_dict()
    assert (ours.citation, ours.temperature) == (original.citation, original.temperature)
    assert isinstance(ours, getattr(originals, name))
    assert inspect.signature(type(ours).__init__) == inspect.signature(type(original).__init__)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0},
        {"directions": ()},
        {"directions": ("doc_to_query",)},
        {"directions": ("query_to_doc", "sideways")},
        {"partition_mode": "apart"},
        {"partition_mode": "per_direction", "directions": ("query_to_doc", "doc_to_doc")},
        {"hardness_mode": "soft"},
        {"hardness_strength": -1.0},
    ],
    ids=name_of,
)
def test_bad_options_raise_as_the_original_does(options):
    with pytest.raises(ValueError) as expected:  # noqa: PT011  # compared below
        originals.MultipleNegativesRankingLoss(None, **options)
    with pytest.raises(ValueError) as found:  # noqa: PT011  # compared here
        losses.MultipleNegativesRankingLoss(None, **options)
    assert str(found.value) == str(expected.value)


def test_hardness_without_strength_is_hinted_at(caplog):
    losses.MultipleNegativesRankingLoss(None, hardness_mode="all_negatives")
    assert "hardness_strength=0.0" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(5, 8)], id="anchors-alone"),
        pytest.param([(5, 8), (5, 7)], id="widths-differ"),
        pytest.param([(5, 8), (4, 8)], id="fewer-positives"),
    ],
)
def test_bad_batches_raise_as_the_original_does(shapes):
    inputs = [torch.ones(shape) for shape in shapes]
    loss = originals.MultipleNegativesRankingLoss(None)
    with pytest.raises(Exception) as expected:  # noqa: PT011  # compared below
        loss.compute_loss_from_embeddings(inputs, None)
    with pytest.raises(expected.type) as found:
        losses.MultipleNegativesRankingLoss(None).compute_loss_from_embeddings(inputs, None)
    assert str(found.value) == str(expected.value)


def test_the_symmetric_loss_warns_its_user_once_and_as_the_original_does():
    said = []
    for module in (originals, losses):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module.MultipleNegativesSymmetricRankingLoss(None)
        said.append([(w.category, str(w.message), w.filename) for w in caught])
    assert len(said[0]) == 1
    assert said[1] == said[0]


def negative_distance(a, b):
    return -torch.cdist(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"similarity_fct": negative_distance}, "similarity_fct", id="own-function"),
        pytest.param({"scale": torch.tensor(7.0)}, "scale is a tensor", id="scale-tensor"),
    ],
)
def test_what_cannot_be_fused_takes_the_original_and_says_so_once(options, message):
    ours = losses.MultipleNegativesRankingLoss(None, **options)
    original = originals.MultipleNegativesRankingLoss(None, **options)
    inputs = embeddings(3)
    with pytest.warns(UserWarning, match=message):
        found = loss_and_gradients(ours, inputs)
    assert all(map(torch.equal, found, loss_and_gradients(original, inputs)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_and_gradients(ours, inputs)


def test_uneven_columns_take_the_original():
    inputs = [*embeddings(2, rows=5), *embeddings(1 + 1, rows=3, seed=1)[:1]]
    ours = losses.MultipleNegativesRankingLoss(None)
    with pytest.warns(UserWarning, match="one shape"):
        found = loss_and_gradients(ours, inputs)
    original = loss_and_gradients(originals.MultipleNegativesRankingLoss(None), inputs)
    assert all(map(torch.equal, found, original))


def test_gathering_alone_gives_the_original_silently():
    inputs = embeddings(2)
    ours = losses.MultipleNegativesRankingLoss(None, gather_across_devices=True)
    expected = loss_and_gradients(originals.MultipleNegativesRankingLoss(None), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = loss_and_gradients(ours, inputs)
    torch.testing.assert_close(alone, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean"])
def test_the_similarity_of_the_model_is_recognised(name):
    model = static_model(torch.float64)
    model.similarity_fn_name = name
    options = {"similarity_fct": model.similarity, "scale": 1.0}
    ours = losses.MultipleNegativesRankingLoss(model, **options)
    original = originals.MultipleNegativesRankingLoss(model, **options)
    inputs = embeddings(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = loss_and_gradients(ours, inputs)
    assert len(caught) == (name == "euclidean")
    torch.testing.assert_close(found, loss_and_gradients(original, inputs), rtol=1e-11, atol=1e-12)
