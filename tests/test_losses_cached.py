"""The cached drop-in losses against sentence-transformers' own: values, gradients, training."""

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
from sentence_transformers.base.losses.gradcache import _create_minibatch
from sentence_transformers.sentence_transformer import losses as originals
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers_cases import (
    DIRECTIONS,
    HARDNESS,
    bert,
    name_of,
    silent,
    static_model,
    texts,
)

from simcse_fast import losses

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["CachedMultipleNegativesRankingLoss", "CachedMultipleNegativesSymmetricRankingLoss"]
# Nothing kept, some graphs kept (these batches hold about 1 MB), and all of them.
MEMORY = [
    pytest.param({"memory_share": 0.0}, id="kept-none"),
    pytest.param({"memory_limit": 900_000}, id="kept-some"),
    pytest.param({}, id="kept-all"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("bert"))


def cached(module, model, memory=None, **options):
    loss = silent(module.CachedMultipleNegativesRankingLoss, model, **options)
    for name, value in (memory or {}).items():
        setattr(loss, name, value)
    return loss


def gradients(loss, model, columns, factor=1.0, features=None):
    """The loss and all parameters' gradients."""
    model.zero_grad()
    value = loss(features or [model.preprocess(column) for column in columns], None)
    (value * factor).backward()
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return value.detach(), torch.cat(flat)


def assert_same(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=0)
    assert (found[1] - expected[1]).norm() <= tolerance * expected[1].norm()
    assert expected[1].norm() > 1e-6


@pytest.mark.parametrize("hardness", HARDNESS, ids=name_of)
@pytest.mark.parametrize("directions", DIRECTIONS, ids=name_of)
def test_every_option_gives_the_original_gradients(model, directions, hardness):
    options = {**directions, **hardness, "mini_batch_size": 4, "scale": 7.0}
    columns = texts(3, 13)
    expected = gradients(cached(originals, model, **options), model, columns)
    assert_same(gradients(cached(losses, model, **options), model, columns), expected)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"mini_batch_size": 1}, id="rows-apart"),
        pytest.param({"mini_batch_size": 64}, id="more-than-the-batch"),
        pytest.param({"mini_batch_num_tokens": 40}, id="tokens"),
        pytest.param({"mini_batch_num_tokens": 1}, id="fewer-tokens-than-a-row"),
    ],
)
def test_mini_batches_and_memory_change_nothing(model, sizes, memory):
    columns = texts(2, 29)
    plain = originals.MultipleNegativesRankingLoss(model)
    expected = gradients(plain, model, columns, factor=0.25)
    loss = cached(losses, model, memory, **sizes)
    assert_same(gradients(loss, model, columns, factor=0.25), expected)


def test_what_is_kept_follows_the_memory(model):
    kept = []
    for memory in MEMORY:
        loss = cached(losses, model, memory.values[0], mini_batch_size=4)
        gradients(loss, model, texts(2, 29))
        kept.append(loss._cache.statistics.kept / loss._cache.statistics.mini_batches)
    assert kept[0] == 0 < kept[1] < kept[2] == 1


@pytest.mark.parametrize("columns", [2, 3])
def test_symmetric_gives_the_original_gradients(model, columns):
    inputs = texts(columns, 13)
    name = "CachedMultipleNegativesSymmetricRankingLoss"
    made = [silent(getattr(m, name), model, mini_batch_size=4) for m in (originals, losses)]
    assert_same(gradients(made[1], model, inputs), gradients(made[0], model, inputs))


def test_single_precision_is_no_worse_than_without_a_cache(tmp_path):
    exact, model = bert(tmp_path), bert(tmp_path, torch.float32)
    columns = texts(2, 64)
    truth = gradients(originals.MultipleNegativesRankingLoss(exact), exact, columns)[1]
    eager = gradients(originals.MultipleNegativesRankingLoss(model), model, columns)[1]
    ours = gradients(cached(losses, model, mini_batch_size=8), model, columns)[1]
    error = [(x.double() - truth).norm() / truth.norm() for x in (ours, eager)]
    assert error[0] <= max(1e-5, error[1]), error


@pytest.mark.parametrize("memory", MEMORY)
def test_dropout_is_replayed(tmp_path, memory):
    model = bert(tmp_path, dropout=0.1)
    columns = texts(2, 29)
    found = []
    for chosen in (memory, {"memory_share": 0.0}):
        torch.manual_seed(3)
        loss = cached(losses, model, chosen, mini_batch_size=4)
        found.append((*gradients(loss, model, columns), torch.rand(3)))
    assert_same(found[0][:2], found[1][:2])
    assert torch.equal(found[0][2], found[1][2])  # the generators end in one state
    model.eval()
    dry = gradients(cached(losses, model, memory, mini_batch_size=4), model, columns)
    assert (dry[1] - found[0][1]).norm() > 1e-2 * dry[1].norm()


def test_accumulated_batches_add_up(model):
    batches = [texts(2, 11, seed) for seed in range(3)]
    total = sum(
        gradients(originals.MultipleNegativesRankingLoss(model), model, batch, 1 / 3)[1]
        for batch in batches
    )
    loss = cached(losses, model, mini_batch_size=4)
    model.zero_grad()
    values = [loss([model.preprocess(c) for c in batch], None) for batch in batches]
    for value in reversed(values):  # all are under way at once
        (value / 3).backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - total).norm() <= 1e-10 * total.norm()


def test_backward_twice_doubles_the_gradient(model):
    columns = texts(2, 11)
    loss = cached(losses, model, mini_batch_size=4)
    once = gradients(loss, model, columns)[1]
    model.zero_grad()
    value = loss([model.preprocess(c) for c in columns], None)
    value.backward(retain_graph=True)
    value.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - 2 * once).norm() <= 1e-10 * once.norm()


@pytest.mark.parametrize("name", ["original", "ours"])
def test_matryoshka_around_it(model, name):
    columns = texts(3, 13)
    plain = originals.MultipleNegativesRankingLoss(model)
    expected = gradients(MatryoshkaLoss(model, plain, [16, 8], [1.0, 0.5]), model, columns)
    inner = cached({"original": originals, "ours": losses}[name], model, mini_batch_size=4)
    found = gradients(MatryoshkaLoss(model, inner, [16, 8], [1.0, 0.5]), model, columns)
    assert_same(found, expected)


def test_static_models_reduce_to_the_fused_loss():
    model = static_model(torch.float64)
    columns = texts(3, 21)
    expected = gradients(originals.MultipleNegativesRankingLoss(model), model, columns)
    with pytest.raises(ValueError, match="StaticEmbedding"):
        cached(originals, model)
    for memory in MEMORY:
        found = gradients(cached(losses, model, memory.values[0]), model, columns)
        assert_same(found, expected)
    inner = cached(losses, model)
    plain = originals.MultipleNegativesRankingLoss(model)
    expected = gradients(MatryoshkaLoss(model, plain, [12, 6]), model, columns)
    assert_same(gradients(MatryoshkaLoss(model, inner, [12, 6]), model, columns), expected)


def test_prompts_are_left_out_of_the_mean(tmp_path):
    model = bert(tmp_path, prompts={"query": "w1 w2 w3 ", "document": "w4 "})
    columns = texts(2, 13)

    def features():
        prompts = ("w1 w2 w3 ", "w4 ")
        return [model.preprocess(c, prompt=p) for c, p in zip(columns, prompts, strict=True)]

    assert "prompt_length" in features()[0]
    plain, ours = originals.MultipleNegativesRankingLoss(model), cached(losses, model)
    expected = gradients(plain, model, columns, features=features())
    assert_same(gradients(ours, model, columns, features=features()), expected)


def test_half_precision_embeddings_keep_small_gradients():
    """In fp16 those of a converged loss, 3e-8, would be zero before they are scaled."""

    class Turned(torch.nn.Linear):
        def forward(self, features):
            return {"sentence_embedding": super().forward(features["rows"].to(self.weight.dtype))}

    found, rows = [], [{"rows": torch.eye(4)}] * 2
    for module, dtype in ((originals, torch.float64), (losses, torch.float16)):
        model = Turned(4, 4, bias=False, dtype=dtype)
        torch.nn.init.eye_(model.weight)
        loss = cached(module, torch.nn.Sequential(model), mini_batch_size=2, scale=20.0)
        found.append(gradients(loss, model, None, 2.0**24, rows)[1].double())
    assert (found[1] - found[0]).norm() <= 2e-3 * found[0].norm()  # the rounding of fp16
    assert found[0].norm() < 10


def test_autocast_is_the_uncached_autocast(tmp_path):
    model = bert(tmp_path, torch.float32)
    columns = texts(2, 29)
    found = []
    for loss in (
        originals.MultipleNegativesRankingLoss(model),
        cached(losses, model, {"memory_share": 0.0}, mini_batch_size=4),
        cached(losses, model, {"memory_limit": 900_000}, mini_batch_size=4),
    ):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss([model.preprocess(c) for c in columns], None)
        value.backward()
        used = [p for name, p in model.named_parameters() if "pooler" not in name]
        assert all(p.grad is not None and p.grad.norm() > 0 for p in used)
        found.append((value.detach().double(), torch.cat([p.grad.flatten() for p in used])))
    rounding = 2.0**-8
    assert_same((found[1][0], found[1][1]), (found[0][0], found[0][1]), 8 * rounding)
    assert_same(found[2], found[1], 1e-5)


def test_evaluation_needs_no_gradient(model):
    columns = texts(2, 13)
    loss = cached(losses, model, mini_batch_size=4)
    with torch.no_grad():
        value = loss([model.preprocess(c) for c in columns], None)
        plain = originals.MultipleNegativesRankingLoss(model)
        expected = plain([model.preprocess(c) for c in columns], None)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=0)


def negative_distance(a, b):
    return -torch.cdist(a, b)


def test_what_cannot_be_fused_is_the_originals_in_our_cache(model):
    columns = texts(2, 13)
    options = {"similarity_fct": negative_distance, "mini_batch_size": 4, "scale": 1.0}
    expected = gradients(cached(originals, model, **options), model, columns)
    with pytest.warns(UserWarning, match="similarity_fct"):
        found = gradients(cached(losses, model, **options), model, columns)
    assert_same(found, expected)


def test_features_whose_rows_are_no_samples_take_the_originals_mini_batches(model):
    """As images of several sizes have them: more rows of pixels than samples."""
    columns = texts(2, 8)

    class Seeing(torch.nn.Module):
        def forward(self, features):
            text = model(
                {k: v for k, v in features.items() if k in {"input_ids", "attention_mask"}}
            )
            seen = features["pixel_values"].reshape(-1, 2).sum(1, keepdim=True)
            return {"sentence_embedding": text["sentence_embedding"] * seen}

    def features():
        pixels = torch.arange(16, dtype=torch.float64)[:, None] + 1
        counts = {"image_grid_thw": torch.tensor([[1, 2, 1]] * 8)}
        return [{**model.preprocess(c), "pixel_values": pixels, **counts} for c in columns]

    assert len(_create_minibatch(features()[0], 0, 4)["pixel_values"]) == 8
    plain = originals.MultipleNegativesRankingLoss(Seeing())
    expected = gradients(plain, model, columns, features=features())
    ours = cached(losses, Seeing(), mini_batch_size=4)
    assert_same(gradients(ours, model, columns, features=features()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_citation_and_class_are_the_originals(model, name):
    options = {"scale": 3.0, "mini_batch_size": 7, "gather_across_devices": True}
    ours = silent(getattr(losses, name), model, **options)
    original = silent(getattr(originals, name), model, **options)
    assert ours.get_config_dict() == original.get_config_dict()
    assert (ours.citation, ours.temperature) == (original.citation, original.temperature)
    assert isinstance(ours, getattr(originals, name))
    assert inspect.signature(type(ours)) == inspect.signature(type(original))
    ours.scale = 9.0
    assert ours.loss.scale == 9.0


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0},
        {"directions": ("doc_to_query",)},
        {"mini_batch_num_tokens": 0},
        {"hardness_strength": -1.0},
    ],
    ids=name_of,
)
def test_bad_options_raise_as_the_original_does(model, options):
    with pytest.raises(ValueError) as expected:  # noqa: PT011  # compared below
        cached(originals, model, **options)
    with pytest.raises(ValueError) as found:  # noqa: PT011  # compared here
        cached(losses, model, **options)
    assert str(found.value) == str(expected.value)


def test_bad_batches_raise(model):
    loss = cached(losses, model)
    columns = [model.preprocess(column) for column in texts(2, 3)]
    with pytest.raises(ValueError, match="at least 2 inputs"):
        loss(columns[:1], None)
    loss.calculate_loss = lambda reps, *_, **__: reps[0][0].sum().backward()
    with pytest.raises(ValueError, match=r"did not use input column\(s\) 1"):
        loss(columns, None)


def test_the_symmetric_loss_warns_its_user_once_and_as_the_original_does(model):
    said = []
    for module in (originals, losses):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(module, NAMES[1])(model)
        said.append([(w.category, str(w.message), w.filename) for w in caught])
    assert len(said[0]) == 1
    assert said[1] == said[0]


def trained(module, name, folder, wrap=lambda _model, loss: loss, **arguments):
    """Logged losses, and what the model card says of the loss."""
    model = bert(folder / "model", torch.float32)
    columns = dict(zip(["anchor", "positive"], texts(2, 96), strict=True))
    loss = silent(getattr(module, name), model, mini_batch_size=8)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "out"),
            max_steps=6,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=7,
            **arguments,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=wrap(model, loss),
    )
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    card = model.model_card_data
    return history, card.citations, card.train_datasets[0]["loss"]["config_code"]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param({}, 1e-4, id="alone"),
        pytest.param({"gradient_accumulation_steps": 2}, 1e-4, id="accumulated"),
        pytest.param(
            {"wrap": lambda model, loss: MatryoshkaLoss(model, loss, [16, 8])},
            1e-4,
            id="matryoshka",
        ),
        pytest.param({"bf16": True}, 2e-2, id="bf16"),  # products of other shapes round otherwise
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_logs_what_it_logs_with_the_original(tmp_path, name, options, tolerance):
    ours = trained(losses, name, tmp_path / "ours", **options)
    original = trained(originals, name, tmp_path / "original", **options)
    assert len(ours[0]) == 6
    assert original[0][-1] < original[0][0]  # it learns
    assert ours[0] == pytest.approx(original[0], abs=tolerance)
    assert ours[1:] == original[1:]  # citations and configuration in the model card


def test_dot_products(model):
    columns, options = texts(2, 13), {"similarity_fct": util.dot_score, "scale": 0.3}
    expected = gradients(originals.MultipleNegativesRankingLoss(model, **options), model, columns)
    found = gradients(cached(losses, model, mini_batch_size=4, **options), model, columns)
    assert_same(found, expected)
