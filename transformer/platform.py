"""Process-wide JAX settings, made in one place before the first compilation."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def cache_root() -> Path:
    """The per-user cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whatif-transformers"


def prepare() -> None:
    """Turns on the persistent compile cache (per user: a shared writable cache can run anybody's code).

    If a cached program cannot be read, JAX warns and compiles again; deleting the folder repairs it.
    """
    import jax

    if not os.environ.get(CACHE_VARIABLE):
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
