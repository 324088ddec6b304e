"""The site of mkdocs.yml, without mkdocs: its pages, their links, and what they must cover."""

import importlib
import re
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import yaml

from simcse_fast.memory import CHOSEN

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ON_REFERENCE = re.compile(r"^::: (\S+)\.(\w+)$", re.MULTILINE)
PUBLIC = (
    *("simcse_fast", "simcse_fast.losses", "simcse_fast.attribution", "simcse_fast.evaluation"),
    *("simcse_fast.information", "simcse_fast.sparsity", "simcse_fast.training"),
    *("simcse_fast.studies", "simcse_fast.pretraining", "simcse_fast.ablations"),
)
READ_FROM_ENVIRONMENT = re.compile(
    # Read, not set for a child.
    r"""(?:environ(?:\.\w+)?|getenv)[\[(]\s*["'](\w+)["'](?!\]\s*=[^=])"""
    r"""|["'](\w+)["'] (?:not )?in os\.environ"""
)


def nav(entries: list) -> list[str]:
    """The pages of a navigation, in its order."""
    found = []
    for entry in entries:
        (target,) = entry.values()
        found += [target] if isinstance(target, str) else nav(target)
    return found


@cache
def prose(page: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


@cache
def anchors(page: str) -> set[str]:
    """What a link may name after #, as Python-Markdown makes it of headings."""
    found: dict[str, None] = {}
    for heading in HEADING.findall(prose(page)):
        plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore")
        words = re.sub(r"[^\w\s-]", "", plain.decode()).strip().lower()
        slug, number = re.sub(r"[-\s]+", "-", words), 0
        while (name := f"{slug}_{number}" if number else slug) in found:
            number += 1
        found[name] = None
    return set(found)


def test_every_page_is_in_the_navigation_once():
    listed = [f"docs/{page}" for page in nav(SITE["nav"])]
    assert sorted(listed) == PAGES, "mkdocs.yml and docs/ differ"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_lists_are_indented_as_the_site_wants(page):
    # GitHub takes two spaces as well; Python-Markdown ends the list there.
    assert not re.findall(r"\n\n {1,3}\S.*", prose(page))


def test_the_site_fetches_no_font():
    assert SITE["theme"]["font"] is False


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_links_lead_somewhere(page):
    lost = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        inside = page not in PAGES or target.resolve().is_relative_to(DOCS)
        there = target.exists() and inside  # the site is docs/ alone
        name = target.resolve().relative_to(ROOT).as_posix() if there else ""
        if not there or (anchor and anchor not in anchors(name)):
            lost.append(link)
    assert not lost


def test_every_public_name_is_on_a_reference_page():
    pages = [(ROOT / page).read_text() for page in PAGES if page.startswith("docs/reference/")]
    shown = [entry for page in pages for entry in ON_REFERENCE.findall(page)]
    assert len(shown) == len(set(shown))
    for module, name in shown:
        assert hasattr(importlib.import_module(module), name)
    public = {name for module in PUBLIC for name in importlib.import_module(module).__all__}
    assert not public - {name for _, name in shown}


def test_every_environment_variable_is_on_its_page():
    page = (DOCS / "backends.md").read_text(encoding="utf-8")
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.*")]
    for folder in ("simcse_fast", "kernels", "examples", "benchmarks"):
        sources += (ROOT / folder).rglob("*.py")
    found = {
        a or b
        for path in sources
        for a, b in READ_FROM_ENVIRONMENT.findall(path.read_text(encoding="utf-8"))
    }
    assert {"NO_COLOR", "RANK", "SIMCSE_FAST_REQUIRE_NATIVE"} <= found
    assert not {name for name in {*found, *CHOSEN} if f"`{name}" not in page}
