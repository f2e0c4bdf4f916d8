"""What pyproject.toml cannot say: the kernels for CPUs (`native/`), built where there is a compiler for them (GCC 11).

Without them jaxpool is complete, and slower on x86 CPUs; a build that fails is therefore a warning.
"""

import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = (
    "module",
    "cpu",
    "attention",
    "norm",
    "product",
    "quantise",
    "avx2",
    "avx512",
    "avx512_bf16",
    "avx512_vnni",
    "amx_attention",
    "amx_float32",
    "amx_product",
)


class BuildOnce(build_ext):
    """Keeps what it built for an editable installation: another extra there need not compile all anew."""

    def run(self) -> None:  # noqa: D102 (setuptools')
        if self.inplace or self.editable_mode:
            self.build_lib = f"build/kernels-{sys.implementation.cache_tag}-jaxlib-{version('jaxlib')}"
        super().run()


def kernels() -> list[Extension]:
    """The module `jaxpool._native`, on x86-64 Linux; XLA's headers come with jaxlib."""
    jaxlib = find_spec("jaxlib")
    if jaxlib is None or jaxlib.origin is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return []
    headers = Path(jaxlib.origin).parent / "include"
    return [
        Extension(
            "jaxpool._native",
            sources=[f"native/{name}.cc" for name in SOURCES],
            depends=["setup.py", *sorted(map(str, Path("native").glob("*.h")))],
            extra_compile_args=["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", f"-isystem{headers}"],
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=kernels(), cmdclass={"build_ext": BuildOnce})
