"""What the documentation shows, run as it stands: README, docs and docstrings."""

import doctest
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import simcse_fast

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
)
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(simcse_fast.__path__, "simcse_fast.")
)
SENTENCES = "the sun gives energy and light\nthe wind gives energy\na cat sat in the sun\n" * 20
ENCODED = tuple(
    f"simcse_fast.{room}" for room in ("ablations", "attribution", "sparsity", "studies")
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats", "chase", "mice", "."]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def encoder(folder):
    """A tiny BERT with random weights, which knows some words."""
    import sentence_transformers as st  # noqa: PLC0415 - slow, and few examples need it
    from transformers import BertConfig, BertModel, BertTokenizerFast  # noqa: PLC0415

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(VOCABULARY), intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast({word: n for n, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    return st.SentenceTransformer(str(folder), device="cpu").eval()


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch):
    """The python blocks of a page run one after the other, as a reader would type them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("sentences.txt").write_text(SENTENCES, encoding="utf-8")  # a text that pages may name
    names: dict[str, object] = {}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        if ">>>" in block[1]:
            example = doctest.DocTestParser().get_doctest(block[1], names, page, page, line)
            example.globs = names  # the parser copies it, but the next block goes on from here
            failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
                example, clear_globs=False
            )
            assert failed.failed == 0
        else:
            code = compile("\n" * line + block[1], ROOT / page, "exec")
            exec(code, names)  # noqa: S102


@pytest.mark.parametrize("name", ["simcse_fast", *MODULES])
def test_docstrings(name, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    # At hand in every example, as after the README's first lines.
    names = {name: getattr(simcse_fast, name) for name in simcse_fast.__all__} | {"torch": torch}
    if name.startswith(ENCODED):
        names["encoder"] = encoder(tmp_path_factory.getbasetemp() / "encoder")
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
