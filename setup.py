"""Build the native libraries: a plain C interface that ctypes loads, one wheel for every Python."""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

REQUIRED = os.environ.get("SIMCSE_FAST_REQUIRE_NATIVE") == "1"
NVCC = os.environ.get("NVCC", shutil.which("nvcc"))
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))


class BuildLibrary(build_ext):
    """An extension module without Python: no init function, no ABI suffix."""

    def get_export_symbols(self, ext):  # noqa: D102
        return ext.export_symbols

    def get_ext_filename(self, fullname):  # noqa: D102
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext):  # noqa: D102
        if not ext.name.endswith("_cuda"):
            return super().build_extension(ext)
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        return self.spawn([NVCC, *ext.extra_compile_args, "-o", str(out), *ext.sources])


class PlatformWheel(bdist_wheel):
    """The library depends on the platform, not on the Python."""

    def get_tag(self):  # noqa: D102
        return ("py3", "none", super().get_tag()[2])


EXTENSIONS = [
    Extension(
        "simcse_fast.kernels.libsimcse_fast",
        sources=sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
        depends=HEADERS,
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=[
            *("-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden"),
            *("-fno-math-errno", "-fno-trapping-math"),
            "-Wno-psabi",  # vectors wider than the baseline stay inside inlined functions
        ],
        extra_link_args=["-fopenmp"],
        optional=not REQUIRED,  # without it the package works on torch operations
    )
]
if NVCC:  # linked with CUDA's static runtime, so that it loads where there is no driver
    EXTENSIONS.append(
        Extension(
            "simcse_fast.kernels.libsimcse_fast_cuda",
            sources=sorted(str(path) for path in Path("csrc/cuda").glob("*.cu")),
            depends=HEADERS,
            extra_compile_args=[
                *("-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-shared"),
                *("-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"),
                *("-Icsrc", "-Icsrc/cuda"),
            ],
            optional=not REQUIRED,
        )
    )
setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
