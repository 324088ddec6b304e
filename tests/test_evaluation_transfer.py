"""Transfer tasks against scikit-learn's own search, and on data that cannot be learned."""

import numpy as np
import pytest
from evaluation_data import Planted, Telling, classes, write_classes

from simcse_fast.evaluation import evaluate

pytest.importorskip("sklearn", reason="needs the extra evaluate")

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from threadpoolctl import threadpool_limits

from simcse_fast.evaluation.learning import STRENGTHS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def alone():
    """For small problems, whose threads would only wait for each other."""
    with threadpool_limits(1):
        yield


def run(tasks, root, model, **options):
    return evaluate(model, tasks, root, progress=False, **options)


def embedded(model, rows):
    return model.encode([" ".join(row[1:]) for row in rows]), np.array([row[0] for row in rows])


def searched(x, y, inner):
    """The strength and its classifier, as scikit-learn's own search has them."""
    x = x / np.sqrt((x**2).sum(1).mean())
    grid = {"C": list(STRENGTHS)}
    return GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=inner).fit(x, y)


def test_ten_folds_with_a_part_to_choose_by(tmp_path):
    rows = classes(120, seed=1)
    write_classes(tmp_path, "mr", rows)
    model = Telling(1.5)
    x, y = embedded(model, rows)
    wanted, strengths = [], []
    for train, test in StratifiedKFold(10, shuffle=True, random_state=7).split(x, y):
        inner = train_test_split(
            np.arange(len(train)), test_size=0.1, random_state=7, stratify=y[train]
        )
        search = searched(x[train], y[train], [tuple(inner)])
        length = np.sqrt((x[train] ** 2).sum(1).mean())
        wanted.append(100 * search.score(x[test] / length, y[test]))
        strengths.append(search.best_params_["C"])
    found = run("MR", tmp_path, model, seed=7)
    about = found.details["MR"]
    assert about["folds"] == pytest.approx(wanted)
    assert about["C"] == strengths
    assert found["MR"] == pytest.approx(np.mean(wanted))
    assert about["deviation"] == pytest.approx(np.std(wanted, ddof=1))
    assert about["count"] == 120


def test_a_test_part_is_judged_on_once(tmp_path):
    train, test = classes(90, 1, "ABC"), classes(40, 2, "ABC")
    write_classes(tmp_path, "trec_train", train)
    write_classes(tmp_path, "trec_test", test)
    model = Telling(1.0)
    (x, y), (z, gold) = embedded(model, train), embedded(model, test)
    search = searched(x, y, StratifiedKFold(5, shuffle=True, random_state=0))
    found = run("TREC", tmp_path, model)
    assert found["TREC"] == pytest.approx(
        100 * search.score(z / np.sqrt((x**2).sum(1).mean()), gold)
    )
    assert found.details["TREC"]["C"] == [search.best_params_["C"]]
    assert "folds" not in found.details["TREC"]


def test_a_dev_part_chooses_and_is_not_learned_from(tmp_path):
    train, dev, test = classes(60, 1), classes(30, 2), classes(50, 3)
    for part, rows in (("train", train), ("dev", dev), ("test", test)):
        write_classes(tmp_path, f"sst2_{part}", rows)
    model = Telling(1.0)
    (x, y), (d, of_dev), (z, gold) = (embedded(model, rows) for rows in (train, dev, test))
    length = np.sqrt((x**2).sum(1).mean())
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x / length, y) for c in STRENGTHS]
    best = max(fits, key=lambda fit: fit.score(d / length, of_dev))  # the first of those alike
    assert run("SST2", tmp_path, model)["SST2"] == pytest.approx(100 * best.score(z / length, gold))


def test_pairs_are_told_apart_by_difference_and_product(tmp_path):
    class Signs:
        def encode(self, texts):  # u * v is the class, u and v alone are not
            return np.array([[float(text.split()[-1]), 0.1] for text in texts])

    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 30)):
        u, v = rng.choice([-1, 1], (2, count))
        rows = [
            (str(int(a == b)), f"{part} {n} {a}", f"{part} {n} other {b}")
            for n, (a, b) in enumerate(zip(u, v, strict=True))
        ]
        write_classes(tmp_path, f"mrpc_{part}", rows)
    found = run("MRPC", tmp_path, Signs())
    assert (found["MRPC"], found.details["MRPC"]["f1"]) == (100, 100)


def test_what_cannot_be_learned_is_the_largest_class(tmp_path):
    class Nothing:
        def encode(self, texts):
            return np.zeros((len(texts), 3))

    for part, count in (("train", 40), ("test", 10)):
        rows = [(str(int(n % 10 < 7)), f"{part} {n}", f"other {n}") for n in range(count)]
        write_classes(tmp_path, f"mrpc_{part}", rows)
    about = run("MRPC", tmp_path, Nothing()).details["MRPC"]
    assert about["all"] == about["largest_class"] == pytest.approx(70)
    assert about["f1"] == pytest.approx(100 * 2 * 0.7 / 1.7)  # precision 0.7, recall 1


def test_noise_is_not_learned_by_heart(tmp_path):
    # Wider than there are rows: whatever rows are seen in training are told apart.
    write_classes(tmp_path, "cr", [(label, f"{text} .") for label, text in classes(200, 5)])
    found = run("CR", tmp_path, Planted(300))
    assert found["CR"] == pytest.approx(50, abs=12)  # three deviations of 200 coins
