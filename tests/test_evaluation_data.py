"""What evaluate reads: both layouts, the archive from the hub, and what it refuses."""

import io
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_data import (
    HEADER,
    Planted,
    classes,
    pairs,
    write,
    write_classes,
    write_senteval,
    write_sts,
)

from simcse_fast.errors import InputError
from simcse_fast.evaluation import evaluate, hub
from simcse_fast.evaluation.folder import read
from simcse_fast.evaluation.tasks import BY_KEY, CHOICES, GROUPS, choose

pytest.importorskip("sklearn", reason="needs the extra evaluate")


def run(tasks, root):
    return evaluate(Planted(), tasks, root, progress=False)


def names(chosen):
    return [task.name for task, _ in chosen]


def test_groups_and_names_are_those_of_the_papers():
    sts = ["STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R"]
    transfer = ["MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC"]
    assert names(choose("sts")) == sts
    assert names(choose(["transfer"])) == transfer
    assert names(choose("all")) == [*sts, *transfer, "alignment", "uniformity"]
    assert names(choose(["uniformity", "mr", "STSBenchmark", "sts_b dev", "sick-r"])) == [
        *("STS-B", "SICK-R", "MR", "uniformity", "STS-B dev")
    ]
    assert choose(["sts", "STS13"])[1] == (BY_KEY["sts13"], True)  # named besides its group
    assert [task.pairs for task in GROUPS["sts"]] == [3108, 1500, 3750, 3000, 1186, 1379, 4927]


@pytest.mark.parametrize("tasks", ["STS17", ["sts", "dance"], [], ["STS-B test"]])
def test_unknown_names_are_told_with_all_there_are(tasks, tmp_path):
    with pytest.raises(ValueError, match="tasks: expected one or more of sts, transfer") as caught:
        run(tasks, tmp_path)
    assert all(name in str(caught.value) for name in CHOICES)


def test_arguments_of_another_kind_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"tasks: expected one or more of sts, .*; got 3"):
        run([3], tmp_path)
    with pytest.raises(TypeError, match="data_dir: expected a path, got int"):
        run("sts", 3)
    with pytest.raises(TypeError, match=r"model: expected a SentenceTransformer.*got str"):
        evaluate("bert-base-uncased", "sts", tmp_path)


def test_columns_may_stand_in_any_order_and_lines_end_as_on_windows(tmp_path):
    rows = pairs(8)
    write_sts(tmp_path / "a", "stsb_test", rows)
    lines = ["sentence2\tscore\tsource\tsentence1"]
    lines += [f"{b}\t{score}\t{source}\t  {a} " for source, score, a, b in rows]
    path = tmp_path / "b" / "sts" / "stsb_test.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    assert dict(run("STS-B", tmp_path / "a")) == dict(run("STS-B", tmp_path / "b"))


def test_quotes_and_other_line_ends_are_letters(tmp_path):
    rows = [("news", "1", 'he said "go', "a\u2028b"), *pairs(4)]
    write_sts(tmp_path, "stsb_test", rows)
    found = read(tmp_path, BY_KEY["stsb"], "test")
    assert (found.first[0], found.second[0], len(found.scores)) == ('he said "go', "a b", 5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([], "tsv: is empty; expected one row a line", id="empty"),
        pytest.param(["", ""], "stsb_test.tsv: is empty", id="blank"),
        pytest.param([HEADER], "only its header; expected one row", id="header-only"),
        pytest.param(["x\t1\ta\tb"], "line 1: expected the header source score", id="no-header"),
        pytest.param([HEADER, "x\t1\ta"], "line 2: expected 4 .*found 3", id="few"),
        pytest.param([HEADER, "x\t1\ta\tb", ""] * 2, "line 3: .*found 1", id="blank-line"),
        pytest.param([HEADER, "x\t1\ta\tb\tc"], "line 2: expected 4 .*found 5", id="many"),
        pytest.param([HEADER, "x\thigh\ta\tb"], "line 2: .* score, got 'high'", id="score"),
        pytest.param([HEADER, "x\tnan\ta\tb"], "line 2: .* score, got 'nan'", id="nan"),
        pytest.param([HEADER, "x\t\ta\tb"], "none of 1 pairs has a score", id="no-gold"),
        pytest.param(
            [HEADER, "x\t1\ta\tb", "x\t1\tc\td"], "STS-B: all 2 gold .* 1;", id="constant"
        ),
        pytest.param([HEADER, "x\t1\ta\tb"], "STS-B: all 1 gold", id="one-pair"),
    ],
)
def test_lines_of_pairs_are_named(lines, message, tmp_path):
    write(tmp_path / "sts" / "stsb_test.tsv", lines)
    with pytest.raises(ValueError, match=message):
        run("sts", tmp_path)


def test_invalid_utf8_is_named_by_its_line(tmp_path):
    path = write_sts(tmp_path, "stsb_test", pairs(3))
    path.write_bytes(path.read_bytes().replace(b"right 1", b"r\xe9ght 1"))
    with pytest.raises(ValueError, match=r"stsb_test.tsv, line 3: invalid UTF-8"):
        run("sts", tmp_path)


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        pytest.param("MR", [("1", "a"), ("1", "b")], "all 2 rows are of class '1'", id="one-class"),
        pytest.param(
            "CR",
            [("1", "a"), *classes(40, 1, "0")],
            "class '1' .* has 1 rows; expected 10",
            id="small",
        ),
        pytest.param("SUBJ", [("0", "a", "b")], "line 1: expected the header label sent", id="two"),
    ],
)
def test_classes_that_cannot_be_divided_are_refused(task, rows, message, tmp_path):
    write_classes(tmp_path, task.lower(), rows)
    with pytest.raises(ValueError, match=message):
        run(task, tmp_path)


def test_a_class_that_is_only_judged_on_is_refused(tmp_path):
    write_classes(tmp_path, "trec_train", classes(60, 1, "AB"))
    write_classes(tmp_path, "trec_test", classes(20, 2, "ABC"))
    with pytest.raises(ValueError, match=r"TREC: class 'C' of .*trec_test.tsv is not among"):
        run("TREC", tmp_path)


def test_what_is_named_must_be_there_and_what_is_in_a_group_need_not(tmp_path):
    write_sts(tmp_path, "stsb_test", pairs(9))
    gone = "neither sts/sts12.tsv nor STS/STS12-en-test/STS.input.MSRpar.txt is in "
    with pytest.raises(ValueError, match=f"tasks: STS12 cannot run: {gone}"):
        run(["STS-B", "STS12"], tmp_path)
    found = run("sts", tmp_path)
    assert list(found) == ["STS-B"]
    assert list(found.skipped) == ["STS12", "STS13", "STS14", "STS15", "STS16", "SICK-R"]
    assert found.skipped["STS12"] == f"{gone}{tmp_path}"
    assert f"STS12 was skipped: {gone}{tmp_path}." in repr(found)
    with pytest.raises(ValueError, match=r"has the data of none of MR, CR.*transfer/mr.tsv nor"):
        run("transfer", tmp_path)
    with pytest.raises(ValueError, match="data_dir: there is no folder"):
        run("sts", tmp_path / "gone")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "sts" / "stsb_test.tsv").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"stsb_test.tsv: cannot be read \(Is a directory\)"):
        run("STS-B", tmp_path)


@pytest.fixture(scope="module")
def senteval(tmp_path_factory):
    root = tmp_path_factory.mktemp("senteval")
    write_senteval(root / "data" / "downstream")
    return root


@pytest.mark.parametrize("inner", ["", "data", "data/downstream"])
def test_sentevals_folder_is_found_from_above(inner, senteval):
    found = read(senteval / inner, BY_KEY["sts12"], "")
    assert len(found.first) == 5 * 7


def test_sentevals_pairs(senteval):
    year = read(senteval, BY_KEY["sts13"], "")
    assert dict.fromkeys(year.sources) == dict.fromkeys(["FNWN", "headlines", "OnWN"])
    assert year.dropped == 6  # two lines a sub-set have no score
    assert year.first[:4] == ["FNWN left 0", "FNWN left 1", "FNWN left 2", "FNWN left 4"]
    np.testing.assert_array_equal(year.scores[:3], [float(row[1]) for row in pairs(3, "FNWN")])
    for part, task in (("test", "stsb"), ("dev", "stsbdev")):
        found = read(senteval, BY_KEY[task], part)
        assert found.sources == [f"main-{part}/f{part}"] * 7
        assert (found.first[2], found.second[2]) == (f"{part} left 2", f"{part} right 2")
        np.testing.assert_array_equal(found.scores, [float(row[1]) for row in pairs(7, part)])
    sick = read(senteval, BY_KEY["sickr"], "test")
    assert (sick.first[0], sick.second[0]) == ("sick left 0", "sick right 0")
    np.testing.assert_array_equal(sick.scores, [float(row[1]) for row in pairs(6, "sick")])


def test_sentevals_classes(senteval):
    movies = read(senteval, BY_KEY["mr"], "")
    assert movies.labels == ["1"] * 12 + ["0"] * 12
    assert movies.columns[0][13] == "MR/rt-polarity caf\u00e9 1 0"
    assert read(senteval, BY_KEY["subj"], "").columns[0][0] == "objective 0 1"
    tree = read(senteval, BY_KEY["sst2"], "dev")
    assert list(zip(tree.labels, tree.columns[0], strict=True)) == classes(20, 3)
    questions = read(senteval, BY_KEY["trec"], "test")
    assert (questions.labels[1], questions.columns[0][1]) == ("NUM", "Who TREC_10 1 ? 1")
    paraphrases = read(senteval, BY_KEY["mrpc"], "train")
    assert paraphrases.labels == ["0", "1"] * 10
    assert [column[3] for column in paraphrases.columns] == ["one train 3", "other 3"]


def test_a_file_of_ours_comes_before_sentevals(senteval, tmp_path):
    write_senteval(tmp_path)
    write_sts(tmp_path, "stsb_test", pairs(5))
    assert run("STS-B", tmp_path).details["STS-B"]["count"] == 5


@pytest.mark.parametrize(
    ("name", "lines", "task", "message"),
    [
        pytest.param(
            "STS/STS13-en-test/STS.input.FNWN.txt", ["a"], "STS13", "FNWN.txt, line 1", id="no-tab"
        ),
        pytest.param(
            "STS/STS13-en-test/STS.gs.OnWN.txt",
            ["1"] * 10,
            "STS13",
            "OnWN.txt: has 10 lines, STS.input.OnWN.txt has 9",
            id="scores-without-sentences",
        ),
        pytest.param(
            "STS/STSBenchmark/sts-test.csv", ["a\tb"], "STS-B", "line 1: expected 7 .*2", id="stsb"
        ),
        pytest.param(
            "TREC/TREC_10.label", ["no class"], "TREC", "line 1: expected CLASS:kind", id="trec"
        ),
        pytest.param("MRPC/msr_paraphrase_test.txt", ["x"], "MRPC", "only its header", id="mrpc"),
    ],
)
def test_sentevals_lines_are_named(name, lines, task, message, tmp_path):
    write_senteval(tmp_path)
    write(tmp_path / name, lines)
    with pytest.raises(ValueError, match=message):
        run(task, tmp_path)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub whose archive is made on the spot, and which counts how often it is asked."""
    asked = []

    def download(repository, file, *, repo_type):
        asked.append((repository, file, repo_type))
        if not (tmp_path / "senteval.tar").exists():
            raise OSError("no route to host")
        return str(tmp_path / "senteval.tar")

    def assets(*names, subfolder):
        folder = tmp_path.joinpath("assets", *names, subfolder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    module = SimpleNamespace(hf_hub_download=download, cached_assets_path=assets)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


@pytest.mark.parametrize("top", [".", "senteval", "SentEval/data/downstream"])
def test_hub_is_asked_once(top, fake_hub, tmp_path, senteval):
    with tarfile.open(tmp_path / "senteval.tar", "w") as archive:
        archive.add(senteval / "data" / "downstream", arcname=top)
    found = run("sts", None)
    assert dict(found) == dict(run("sts", senteval))
    assert list(found) == ["STS12", "STS13", "STS-B", "SICK-R"]
    run("STS-B", None)
    assert fake_hub == [("princeton-nlp/datasets-for-simcse", "senteval.tar", "dataset")]


def test_no_hub_is_one_sentence_that_names_data_dir(fake_hub):
    with pytest.raises(InputError, match=r"data_dir: .* cannot be downloaded .*; give data_dir"):
        run("sts", None)


@pytest.mark.parametrize("kind", ["no-archive", "cut", "leaves"])
def test_an_archive_that_is_not_as_expected_leaves_nothing(kind, fake_hub, tmp_path, senteval):
    path = tmp_path / "senteval.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(senteval / "data" / "downstream", arcname=".")
        if kind == "leaves":
            archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:30_000])
    elif kind == "no-archive":
        path.write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"data_dir: .* cannot be unpacked .*; give data_dir"):
        run("sts", None)
    assert list((tmp_path / "assets" / "simcse_fast" / "evaluation" / "senteval").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_another_process_may_unpack_first(tmp_path, senteval):
    path, folder = tmp_path / "senteval.tar", tmp_path / "data"
    with tarfile.open(path, "w") as archive:
        archive.add(senteval / "data" / "downstream" / "MR", arcname="MR")
    folder.mkdir()
    hub.unpack(path, folder)
    assert sorted(tmp_path.iterdir()) == [folder, path]
