"""Source distribution and wheel: what is in them, and that they work where they are installed."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from packaging.metadata import Metadata

SMOKE = """
import simcse_fast, torch
from simcse_fast.kernels import native
query, key = torch.eye(3, 8, requires_grad=True), torch.eye(3, 8)
loss = simcse_fast.info_nce(query, key, temperature=1.0)
loss.backward()
assert query.grad.abs().max() > 0
print(simcse_fast.__file__, native.PATH.exists(), simcse_fast.backends()["cpu"].available)
print(f"{loss.item():.6f}")
"""
LOSS = "0.551445"  # log(e + 2) - 1: one cosine of 1, two of 0, at temperature 1
INGREDIENTS = (
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
    *("csrc", "kernels", "simcse_fast", "tests"),
)
GENERATED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false", "NVCC": "/bin/false"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tags are those of Linux")


def run(*command, **environment: str) -> str:
    return subprocess.run(  # noqa: S603
        command,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | environment,
        cwd="/",  # out of the source tree, which would shadow what is installed
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout


def build(source: Path, out: Path, *kinds: str, **environment: str) -> None:
    run(
        *(sys.executable, "-m", "build", "--no-isolation", *kinds),
        *("--outdir", str(out), str(source)),
        **{"SIMCSE_FAST_REQUIRE_NATIVE": "0"} | environment,
    )


def install(wheel: Path, folder: Path) -> str:
    """The interpreter of a new environment: this wheel, and this environment's other packages."""
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet"),
        *("--no-deps", "--no-index", str(wheel)),
    )
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path file adds a folder without running the path files in it, so the editable install of
    # the source tree stays out.
    Path(packages, "outer.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture(scope="session")
def source(repository, tmp_path_factory) -> Path:
    """A copy of the tree without what earlier builds left in it."""
    copy = tmp_path_factory.mktemp("packaging") / "source"
    copy.mkdir()
    for name in INGREDIENTS:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, copy / name, ignore=GENERATED)
        else:
            shutil.copy2(repository / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def distributions(source, tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel built from it, as `make wheel` leaves them."""
    out, repaired = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("repaired")
    build(source, out)
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    if shutil.which("g++"):
        run(
            *(sys.executable, "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1"),
            *("--wheel-dir", str(repaired), str(wheel)),
            PATH=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])),
        )
        (wheel,) = repaired.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="session")
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")


def test_source_distribution_carries_the_sources(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/simcse_fast.h", "kernels/native.py", "LICENSE", "tests/conftest.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".nbi", ".nbc"))]


@pytest.mark.usefixtures("compiler")
def test_wheel_has_one_top_level_name_and_serves_every_python(distributions):
    wheel = distributions[1]
    machine = platform.machine()
    tag = re.fullmatch(rf"simcse_fast-[\d.]+-py3-none-manylinux_2_(\d+)_{machine}\.whl", wheel.name)
    assert tag, wheel.name
    assert int(tag[1]) <= int(platform.libc_ver()[1].split(".")[1])  # glibc's, 2.x
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    # Nothing beside it, as the folder simcse_fast.libs with an OpenMP runtime of its own would be.
    assert {name.partition("/")[0] for name in names} == {
        "simcse_fast",
        wheel.name.partition("-py3")[0] + ".dist-info",
    }
    kinds = ("", "_cuda") if shutil.which("nvcc") else ("",)
    libraries = {f"simcse_fast/kernels/libsimcse_fast{kind}.so" for kind in kinds}
    assert {name for name in names if ".so" in name} == libraries
    assert "simcse_fast/py.typed" in names


@pytest.mark.usefixtures("compiler")
def test_library_takes_the_openmp_runtime_that_torch_has_loaded(distributions):
    with (
        zipfile.ZipFile(distributions[1]) as archive,
        archive.open("simcse_fast/kernels/libsimcse_fast.so") as file,
    ):
        tags = list(ELFFile(file).get_section_by_name(".dynamic").iter_tags())
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert "libgomp.so.1" in needed
    assert not {tag.entry.d_tag for tag in tags} & {"DT_RPATH", "DT_RUNPATH"}
    assert not [name for name in needed if "python" in name or "torch" in name]


def test_metadata_is_valid_and_names_every_extra(distributions, repository):
    with zipfile.ZipFile(distributions[1]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = Metadata.from_email(archive.read(name), validate=True)
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert str(found.version) == project["version"]
    assert set(found.provides_extra) == set(project["optional-dependencies"])
    assert found.license_expression == "Apache-2.0"
    assert found.description_content_type == "text/markdown"
    assert found.description.strip() == (repository / "README.md").read_text().strip()


@pytest.mark.usefixtures("compiler")
def test_installed_wheel_computes_with_the_native_library(distributions, tmp_path):
    python = install(distributions[1], tmp_path / "venv")
    report = run(python, "-c", SMOKE)
    assert report.split()[1:] == ["True", "True", LOSS], report
    assert report.startswith(str(tmp_path))
    assert "usage: simcse-fast" in run(str(tmp_path / "venv" / "bin" / "simcse-fast"), "--help")


def test_without_a_compiler_the_package_works_on_torch(source, tmp_path):
    build(source, tmp_path, "--wheel", **NO_COMPILER)
    (wheel,) = tmp_path.glob("*.whl")
    report = run(install(wheel, tmp_path / "venv"), "-c", SMOKE)
    assert report.split()[1:] == ["False", "False", LOSS], report


def test_without_a_compiler_the_build_fails_when_native_is_required(source, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        build(source, tmp_path, "--wheel", SIMCSE_FAST_REQUIRE_NATIVE="1", **NO_COMPILER)
    assert "/bin/false" in failure.value.output
