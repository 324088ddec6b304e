"""The C interface, called from C++: tests/native, linked with the library that is installed."""

import shutil
import subprocess

import pytest

from simcse_fast.kernels import native


def test_every_function_against_plain_loops(repository, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    if not native.PATH.exists():
        pytest.skip("the native library was not built")
    program = tmp_path / "test_native"
    sources = sorted((repository / "tests" / "native").glob("*.cpp"))
    subprocess.run(  # noqa: S603
        [
            *(compiler, "-std=c++17", "-O1", f"-I{repository / 'csrc'}", *sources, native.PATH),
            *(f"-Wl,-rpath,{native.PATH.parent}", "-o", program),
        ],
        check=True,
    )
    run = subprocess.run([program], capture_output=True, text=True, check=False)  # noqa: S603
    assert run.returncode == 0, run.stdout + run.stderr
    assert "baseline: done" in run.stdout
