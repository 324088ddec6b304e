"""The kernels in CUDA C++ compiled for Hopper: registers, and what makes them fast."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="its disassembler is used")
NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
KERNELS = 10  # kinds of epilogue, each with masks by id and margin and without
SPILLED = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="module")
def compiled(repository, tmp_path_factory) -> tuple[str, dict[str, str]]:
    """What the assembler says, and the machine code of each kernel."""
    cubin = tmp_path_factory.mktemp("cuda") / "infonce.cubin"
    csrc = repository / "csrc"
    said = subprocess.run(  # noqa: S603
        [
            *(NVCC, "-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-cubin"),
            *("-Werror=all-warnings", "-Xptxas=-v", f"-I{csrc}", f"-I{csrc / 'cuda'}"),
            *("-o", cubin, csrc / "cuda" / "infonce.cu"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    code = subprocess.run(  # noqa: S603
        [tools / "cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"\s+Function : (\S+)", code)
    return said.stderr, dict(zip(parts[1::2], parts[2::2], strict=True))


def instructions(code: str) -> list[str]:
    """Their names with all that qualifies them, in order."""
    return re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\S+\s+)?([A-Z][\w.]+)", code)


def test_nothing_is_spilled_and_no_advice_is_given(compiled):
    said, code = compiled
    frames = SPILLED.findall(said)
    assert len(frames) == len(code) == KERNELS
    assert set(frames) == {("0", "0", "0")}
    # C7508: setmaxnreg ignored; C7510 to C7515: products wait for each other.
    assert "(C7" not in said, said
    assert "warning" not in said, said


def test_registers_of_all_warps_fit_the_file(compiled):
    """At entry, and after the producer has given some of its own to the consumers."""
    registers = {int(n) for n in re.findall(r"Used (\d+) registers", compiled[0])}
    threads = 384
    assert max(registers) * threads <= 65_536
    for code in compiled[1].values():
        moved = re.findall(r"USETMAXREG\S*\s+(?:UP0, )?(0x[0-9a-f]+)", code)
        assert sorted(int(n, 16) for n in moved) == [40, 232]
        assert 128 * (40 + 2 * 232) <= 65_536


def test_the_loop_multiplies_and_waits_for_nothing_but_its_stage(compiled):
    """Two products of 64 x 256 x 16 for a stage; no fence of the whole device between them."""
    for name, code in compiled[1].items():
        names = instructions(code)
        products = [i for i, x in enumerate(names) if x.startswith("HGMMA")]
        assert {names[i] for i in products} == {"HGMMA.64x256x16.F32.BF16"}, name
        assert len(products) % 2 == 0
        loop = names[products[0] : products[-1] + 40]
        assert "MEMBAR.ALL.GPU" not in loop, name
        assert not [x for x in loop if x.startswith(("LDL", "STL", "LDG", "LDS"))], name


def test_copies_go_through_the_engine_and_to_both_blocks(compiled):
    stored = 0
    for name, code in compiled[1].items():
        names = instructions(code)
        assert "UTMALDG.2D" in names, name
        assert "UTMALDG.2D.MULTICAST" in names, name
        stored += "UTMASTG.2D" in names
    assert stored == 6  # of three kinds: exponentials, gradients of rows, of rows and columns
