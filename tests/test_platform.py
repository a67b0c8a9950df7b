"""Settings of the process that make calls cheaper."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from transformer.platform import compiler_options, keep_memory

# Calls a program with 64 MiB of temporary memory, and prints how many pages the system had to provide per call.
PROGRAM = """
import resource, sys
from transformer.platform import prepare
if sys.argv[1] == "prepared":
    prepare()
import jax, jax.numpy as jnp

def f(x):
    big = jnp.sin(jnp.outer(x, x + 1))
    return big @ big[:, :8]

f, x, pages = jax.jit(f), jnp.ones(4096), []
for _ in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(pages[12:])[6])  # after the heap has found its size
"""
PAGES = 64 * 2**20 // 4096
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_call_reuses_the_memory_of_the_call_before():
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")
    assert faults("prepared") < PAGES / 20
    if "[always]" not in HUGE_PAGES.read_text():
        assert faults("plain") > PAGES / 2  # what is saved


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory()


def test_a_gpu_is_not_made_to_try_kernels_that_full_float32_never_wins_with(monkeypatch):
    assert compiler_options("highest") is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options("highest") == {"xla_gpu_enable_triton_gemm": False}
    assert compiler_options("default") is None
