"""The house's rules on imports: docs/architecture.md, "Direction of imports"."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import simcse_fast

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE_KERNELS = {"torch", "numpy", "triton", "numba", "llvmlite"}  # llvmlite is numba's own
HEAVY = {
    *("numba", "triton", "transformers", "sentence_transformers", "datasets"),
    *("pyarrow", "matplotlib", "pandas", "tqdm", "scipy", "sklearn"),
}
# Floors of the house, from the ground up; a module may import its own floor and those below.
FLOORS = (
    ("simcse_fast.kernels",),
    (
        *("simcse_fast.errors", "simcse_fast.backend", "simcse_fast.autograd"),
        "simcse_fast.autograd_metrics",
    ),
    ("simcse_fast",),  # losses, metrics, attribution, information and whatever else is public
    ("simcse_fast.cli",),
)


def source_modules() -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    modules = {}
    for folder, package in (("kernels", "simcse_fast.kernels"), ("simcse_fast", "simcse_fast")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join((package, *parts))] = path
    return modules


MODULES = source_modules()
KERNELS = [name for name in MODULES if name.startswith("simcse_fast.kernels")]


def imports(tree: ast.AST) -> set[str]:
    """Absolute names of all that a tree imports, also inside functions and `if TYPE_CHECKING`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the direction"
            names.update(
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module
                for alias in node.names
            )
    return names


def parsed(name: str) -> ast.AST:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor(name: str) -> int:
    """The floor whose longest prefix fits: simcse_fast.cli is on its own floor, not on losses'."""
    fits = [
        (len(prefix), n) for n, row in enumerate(FLOORS) for prefix in row if under(name, prefix)
    ]
    return max(fits)[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "simcse_fast"])
def test_imports_point_down(name):
    upward = {
        other
        for other in imports(parsed(name))
        if under(other, "simcse_fast") and floor(other) > floor(name)
    }
    assert not upward


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_a_top_level_folder(name):
    tops = {other.partition(".")[0] for other in imports(parsed(name))}
    assert not tops & {"kernels", "tests", "benchmarks", "examples"}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_import_arrays_compilers_and_themselves(name):
    allowed = OUTSIDE_KERNELS | sys.stdlib_module_names
    foreign = {
        other
        for other in imports(parsed(name))
        if not under(other, "simcse_fast.kernels") and other.partition(".")[0] not in allowed
    }
    assert not foreign


def last_name(node: ast.AST) -> str:
    """`Function` for `torch.autograd.Function`, `autograd.Function` and `Function`."""
    return getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_know_no_gradient_layer_or_environment(name):
    nodes = list(ast.walk(parsed(name)))
    bases = {last_name(b) for node in nodes if isinstance(node, ast.ClassDef) for b in node.bases}
    assert not bases & {"Function", "Module"}
    assert not {last_name(node) for node in nodes} & {"environ", "getenv"}


def test_kernels_package_is_a_docstring():
    # At the repository's root other libraries may find it under the name `kernels`.
    body = parsed("simcse_fast.kernels").body
    assert len(body) == 1
    assert ast.get_docstring(parsed("simcse_fast.kernels"))


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import simcse_fast", id="package"),
        pytest.param("import simcse_fast; simcse_fast.info_nce", id="loss"),
        pytest.param("import simcse_fast.cli", id="command-line"),
    ],
)
def test_import_brings_no_optional_library(statement):
    code = f"""import sys, torch
before = set(sys.modules)
{statement}
print(*set(sys.modules) - before)"""
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    brought = {name.partition(".")[0] for name in run.stdout.split()}
    assert "simcse_fast" in brought
    assert not brought & HEAVY


def test_every_public_name_exists():
    assert sorted(simcse_fast.__all__) == list(simcse_fast.__all__)
    for name in simcse_fast.__all__:
        assert getattr(simcse_fast, name) is not None


def test_packages_list_is_complete():
    # They are given by name, so that no folder gets into the wheel by chance, or stays out of it.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
