"""What the documentation shows, run as it stands: README, docs and docstrings."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import simcse_fast

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
)
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(simcse_fast.__path__, "simcse_fast.")
)
SENTENCES = "the sun gives energy and light\nthe wind gives energy\na cat sat in the sun\n" * 20
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    # At hand in every example, as after the README's first lines.
    names = {name: getattr(simcse_fast, name) for name in simcse_fast.__all__} | {"torch": torch}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
