"""Finds and loads the native library, declares its functions, turns a status into an exception."""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401  # loaded first, so that the library shares torch's OpenMP runtime

ABI_VERSION = 12
FAILED = 2  # the status of sf_status that is not the caller's fault
PATH = Path(__file__).with_name("libsimcse_fast.so")
CUDA_PATH = PATH.with_name("libsimcse_fast_cuda.so")


class Product(Structure):
    """sf_product."""

    _fields_ = (
        ("left", c_void_p),
        ("left_row", c_int64),
        ("left_column", c_int64),
        ("right", c_void_p),
        ("right_row", c_int64),
        ("right_column", c_int64),
        ("out", c_void_p),
        ("out_row", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("depth", c_int64),
        ("accumulate", c_int32),
        ("scratch", c_void_p),
        ("threads", c_int32),
    )


class Segment(Structure):
    """sf_segment."""

    _fields_ = (
        ("begin", c_int64),
        ("width", c_int64),
        ("slope", c_double),
        ("own_slope", c_double),
        ("own", c_int32),
    )


class Softmax(Structure):
    """sf_softmax."""

    _fields_ = (
        ("loss", c_void_p),
        ("offset", c_void_p),
        ("inverse_sum", c_void_p),
        ("miss", c_void_p),
        ("smoothing", c_void_p),
    )


class Rows(Structure):
    """sf_rows."""

    _fields_ = (
        ("similarity", c_void_p),
        ("rows", c_int64),
        ("stride", c_int64),
        ("labels", c_void_p),
        ("segments", POINTER(Segment)),
        ("segment_count", c_int64),
        ("hard", c_void_p),
        ("hard_count", c_int64),
        ("hard_slope", c_double),
        ("hard_shift", c_double),
        ("query_ids", c_void_p),
        ("key_ids", c_void_p),
        ("margin", c_float),
        ("label_smoothing", c_float),
        ("weight", c_void_p),
        ("uniform_weight", c_float),
        ("write_gradient", c_int32),
        ("write_hard_gradient", c_int32),
        ("softmax", Softmax),
        ("threads", c_int32),
    )


class Square(Structure):
    """sf_square."""

    _fields_ = (
        ("similarity", c_void_p),
        ("rows", c_int64),
        ("stride", c_int64),
        ("first_row", c_int64),
        ("columns", c_int64),
        ("slope", c_double),
        ("positive_slope", c_double),
        ("positive", c_void_p),
        ("query_ids", c_void_p),
        ("key_ids", c_void_p),
        ("margin", c_float),
        ("label_smoothing", c_float),
        ("weight", c_void_p),
        ("uniform_weight", c_float),
        ("row", Softmax),
        ("column", Softmax),
        ("column_sum", c_void_p),
        ("logit_sum", c_void_p),
        ("column_count", c_void_p),
        ("threads", c_int32),
    )


class Small(Structure):
    """sf_small."""

    _fields_ = (
        ("panel", Rows),
        ("square", POINTER(Square)),
        ("query", c_void_p),
        ("key", c_void_p),
        ("width", c_int64),
        ("factor", c_float),
        ("scratch", c_void_p),
        ("total", c_void_p),
        ("query_gradient", c_void_p),
        ("key_gradient", c_void_p),
        ("projection", c_void_p),
    )


class Potentials(Structure):
    """sf_potentials."""

    _fields_ = (
        ("product", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("stride", c_int64),
        ("first_row", c_int64),
        ("first_column", c_int64),
        ("row_bias", c_void_p),
        ("column_bias", c_void_p),
        ("slope", c_double),
        ("offset", c_double),
        ("row_sum", c_void_p),
        ("column_sum", c_void_p),
        ("largest", c_void_p),
        ("keep", c_int32),
        ("threads", c_int32),
    )


class Few(Structure):
    """sf_few."""

    _fields_ = (
        ("x", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("slope", c_double),
        ("scratch", c_void_p),
        ("total", c_void_p),
        ("gradient", c_void_p),
        ("threads", c_int32),
    )


class Heads(Structure):
    """sf_heads."""

    _fields_ = (
        ("at", c_void_p),
        ("batch", c_int64),
        ("head", c_int64),
        ("row", c_int64),
    )


class Attention(Structure):
    """sf_attention."""

    _fields_ = (
        ("batch", c_int64),
        ("heads", c_int64),
        ("length", c_int64),
        ("depth", c_int64),
        ("scale", c_float),
        ("bias", c_void_p),
        ("weights", c_void_p),
        ("query", Heads),
        ("key", Heads),
        ("value", Heads),
        ("out", Heads),
        ("query_gradient", Heads),
        ("key_gradient", Heads),
        ("value_gradient", Heads),
        ("threads", c_int32),
    )


class InfonceProducts(Structure):
    """sf_infonce_products."""

    _fields_ = (
        ("query", c_void_p),
        ("key", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("depth", c_int64),
        ("panel", c_void_p),
        ("stride", c_int64),
        ("width", c_int64),
        ("numbers", c_void_p),
        ("hardness", c_double),
        ("own_hardness", c_double),
        ("own", c_int32),
        ("labels", c_void_p),
        ("query_ids", c_void_p),
        ("key_ids", c_void_p),
        ("positive", c_void_p),
        ("opposite", c_void_p),
        ("margin", c_float),
        ("flag", c_void_p),
        ("expected", c_int32),
        ("lead", c_int32),
        ("device", c_int32),
        ("stream", c_void_p),
    )


class InfonceSums(Structure):
    """sf_infonce_sums."""

    _fields_ = (("row_sums", c_void_p), ("column_sums", c_void_p))


class InfonceGradients(Structure):
    """sf_infonce_gradients."""

    _fields_ = (("row_factor", c_void_p), ("column_factor", c_void_p), ("own", c_void_p))


_SIZES = {"sf_product_scratch": Product, "sf_small_scratch": Small, "sf_few_scratch": Few}
_SIGNATURES = {
    "sf_use_instruction_set": (c_char_p,),
    "sf_copy_past_caches": (c_void_p, c_int64, c_void_p, c_int32),
    "sf_normalize": (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int32),
    "sf_normalize_backward": (
        *(c_void_p, c_void_p, c_void_p, c_int64, c_int64),
        *(c_float, c_void_p, c_void_p, c_int32),
    ),
    "sf_multiply": (POINTER(Product),),
    "sf_infonce_rows": (POINTER(Rows),),
    "sf_infonce_small": (POINTER(Small),),
    "sf_infonce_columns": (POINTER(Square),),
    "sf_infonce_columns_end": (POINTER(Square),),
    "sf_infonce_square": (POINTER(Square),),
    "sf_uniformity_potentials": (POINTER(Potentials),),
    "sf_uniformity_few": (POINTER(Few),),
    "sf_attention_forward": (POINTER(Attention),),
    "sf_attention_backward": (POINTER(Attention),),
}
_CUDA_SIGNATURES = {
    "sf_infonce_sums_cuda": (POINTER(InfonceProducts), POINTER(InfonceSums)),
    "sf_infonce_gradients_cuda": (POINTER(InfonceProducts), POINTER(InfonceGradients)),
}


def _check(status: int, function: object, _arguments: object) -> int:
    if status:
        name = getattr(function, "__name__", function)
        raise RuntimeError(f"{name}: the native library refused its arguments (status {status})")
    return status


def _declare(
    library: ctypes.CDLL,
    signatures: dict[str, tuple[Any, ...]],
    check: Callable[[int, Any, object], int] = _check,
) -> ctypes.CDLL:
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype, function.errcheck = arguments, c_int32, check
    return library


def _open(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise OSError(f"{path.name} was not built")
    library = ctypes.CDLL(str(path))
    library.sf_abi_version.restype = c_int32
    if (found := library.sf_abi_version()) != ABI_VERSION:
        raise OSError(f"{path.name} has interface version {found}, expected {ABI_VERSION}")
    return library


@cache
def load() -> ctypes.CDLL:
    """The native library, loaded once.

    Raises:
        OSError: it was not built, does not load here, or belongs to another version.
    """
    library = _declare(_open(PATH), _SIGNATURES)
    library.sf_instruction_set.restype = c_char_p
    library.sf_outruns_blas.restype = c_int32
    for name, argument in _SIZES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = (POINTER(argument),), c_int64
    return library


def declare_cuda(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the functions of a library of kernels in CUDA C++."""
    refusal = library.sf_cuda_refusal
    refusal.restype = c_char_p

    def check(status: int, function: Any, arguments: object) -> int:
        if status == FAILED:
            reason = refusal().decode()
            raise RuntimeError(f"{function.__name__}: the device refused a launch ({reason})")
        return _check(status, function, arguments)

    return _declare(library, _CUDA_SIGNATURES, check)


@cache
def load_cuda() -> ctypes.CDLL:
    """The library of kernels in CUDA C++, loaded once.

    Raises:
        OSError: as of `load`; it is built where there is nvcc.
    """
    return declare_cuda(_open(CUDA_PATH))


def instruction_set() -> str:
    """The instruction set in use: amx, avx512, avx2 or baseline."""
    return str(load().sf_instruction_set().decode())
