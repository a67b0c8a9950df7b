"""Process-wide settings, made in one place before the first compilation."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"

# What `mallopt` of glibc calls its parameters (malloc.h), and the values that make it keep memory.
KEEP_MEMORY = {
    "M_ARENA_MAX": (-8, 1),  # one heap for all threads; the others could not hold a block of more than 64 MiB
    "M_MMAP_MAX": (-4, 0),  # large blocks come from that heap too, not from mappings of their own
    "M_TRIM_THRESHOLD": (-1, -1),  # what is freed stays
}


def cache_root() -> Path:
    """The per-user cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whatif-transformers"


def prepare() -> None:
    """Keeps freed memory in the process and turns on the persistent compile cache (per user: a shared writable
    cache can run anybody's code).

    If a cached program cannot be read, JAX warns and compiles again; deleting the folder repairs it.
    """
    keep_memory()
    import jax

    if not os.environ.get(CACHE_VARIABLE):
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def compiled(function: Callable[..., Any], precision: str, **arguments: Any) -> Any:
    """`jax.jit` of a function whose products of matrices have this precision; not to be called inside another jitted
    function, which JAX refuses where there are options for the compiler.

    Args:
      precision: `numerics.matmul_precision`.
      arguments: those of `jax.jit`.
    """
    import jax

    precise = jax.default_matmul_precision(precision)  # read while tracing
    return jax.jit(precise(function), compiler_options=compiler_options(precision), **arguments)


def compiler_options(precision: str) -> dict[str, Any] | None:
    """What XLA is told beyond its defaults.

    On a GPU it tries Triton's kernels for every product and keeps the fastest. In full float32 those of the library
    win, and compiling the others takes minutes.
    """
    import jax

    return {"xla_gpu_enable_triton_gemm": False} if precision == "highest" and jax.default_backend() == "gpu" else None


def keep_memory() -> bool:
    """Tells the C library to reuse freed memory instead of giving it back to the system.

    On a CPU every call of a compiled program allocates its temporary memory, often hundreds of MiB, and frees it at
    the end. By default glibc maps such a block anew each time, and the system clears it page by page: a quarter of
    the time of a call of one training step. In exchange the process stays as large as it ever was, and may hold
    two or three such blocks, since a freed one is not always used again.

    Returns:
      Whether it could; False, and nothing changed, where the C library is another than glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 (others have a mallopt that does nothing)
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(number, value) for number, value in KEEP_MEMORY.values()])
