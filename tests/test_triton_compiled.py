"""Every Triton kernel compiled ahead of time for GPUs that are not here: nothing is spilled."""

import pytest
from compilations import compile_all, possible

from simcse_fast.kernels.infonce import tiles

pytestmark = pytest.mark.skipif(not possible(), reason="needs triton, which compiles without a GPU")
REGISTERS = 65_536  # of a multiprocessor
LONG = 4096  # columns of a row that are read together
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes that a program may have


@pytest.fixture(scope="module")
def compiled():
    """Capability -> kernels."""
    return compile_all(SHARED)


@pytest.mark.parametrize("capability", SHARED)
def test_nothing_is_spilled_and_everything_can_be_launched(compiled, capability):
    kernels = compiled[capability]
    assert len(kernels) > 100
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        assert kernel["shared"] <= SHARED[capability], kernel
        threads = 32 * kernel.get("num_warps", 4)
        assert kernel["registers"] * threads <= REGISTERS, kernel


@pytest.mark.parametrize("capability", SHARED)
def test_the_sizes_compiled_are_those_of_the_table(compiled, capability):
    """Each tile that a launcher can choose on the device, and no others."""
    pairs = [pair for several in tiles.attention_table(capability).values() for pair in several]
    table = {
        "infonce_queries_kernel": {queries for queries, _ in pairs},
        "infonce_keys_kernel": {keys for _, keys in pairs},
    }
    kinds = ("plain", "columns", "gradients", "full")
    chosen = {
        tile
        for kind in kinds
        for tile in tiles.PRODUCTS.get((capability, 2, kind), tiles.OTHERWISE[2, kind])
    }
    table["infonce_sums_kernel"] = table["infonce_gradient_kernel"] = chosen
    for name, expected in table.items():
        sizes = {(t.rows, t.columns, t.warps, t.stages) for t in expected}
        found = {
            tuple(k[field] for field in ("BM", "BN", "num_warps", "num_stages"))
            for k in compiled[capability]
            if k["kernel"] == name
        }
        assert found <= sizes
        if name != "infonce_gradient_kernel":  # some sizes are for sums alone
            assert found == sizes


@pytest.mark.parametrize("capability", [90, 100])
def test_products_use_the_copy_engine(compiled, capability):
    stored = [k for k in compiled[capability] if k.get("STORE") and k["BM"] == 128]
    large = [k for k in stored if k["type"] != "torch.float32"]
    assert large
    assert all(k["TMA"] for k in large)


@pytest.mark.parametrize("capability", SHARED)
def test_passes_over_a_stored_panel_read_sixteen_bytes_at_a_time(compiled, capability):
    """And two programs share a multiprocessor, but where ids and a margin are compared."""
    names = {"infonce_rows_kernel", "infonce_both_kernel", "infonce_fold_kernel"}
    kernels = [k for k in compiled[capability] if k["kernel"] in names]
    assert {k["kernel"] for k in kernels} == names
    for kernel in kernels:
        threads = 32 * kernel.get("num_warps", 4)
        if not kernel.get("IDS"):
            assert 2 * kernel["registers"] * threads <= REGISTERS, kernel
        if kernel["kernel"] == "infonce_rows_kernel" and kernel["BN"] == LONG:
            assert kernel["vector_bytes"] >= 2 * 4 * LONG // threads, kernel  # read twice


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(("name", "inputs"), [("points", 1), ("contributions", 2)])
def test_paths_are_read_sixteen_bytes_at_a_time(compiled, capability, name, inputs):
    """Each embedding once, and the baseline; in every type, where rows are aligned."""
    kernels = [k for k in compiled[capability] if k["kernel"] == f"path_{name}_kernel"]
    sizes = {"torch.bfloat16": 2, "torch.float16": 2, "torch.float32": 4}
    assert {(k["type"], k["BD"]) for k in kernels} == {
        (dtype, width) for dtype in sizes for width in (64, 512, 1024, 4096)
    }
    aligned = [k for k in kernels if k["vector_bytes"]]
    assert len(aligned) == len(kernels) - len(sizes)  # one width is odd
    for kernel in aligned:
        tile = kernel["BT"] * kernel["BD"] * sizes[kernel["type"]] // (32 * kernel["num_warps"])
        most = inputs * tile + max(16, kernel["BD"] * sizes[kernel["type"]] // 128)
        assert inputs * tile <= kernel["vector_bytes"] <= most, kernel
        assert kernel["registers"] <= 64, kernel  # a thousand threads a processor hide the latency
