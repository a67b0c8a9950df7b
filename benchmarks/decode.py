"""How fast is text generated beside Hugging Face's `generate`, with the same weights and the same tokens?

    python -m benchmarks.decode [--sizes=small,medium] [--peer=PYTHON] [--rounds=9] [--json=FILE]

The model is GPT-2's architecture with random weights that Hugging Face draws. Each side lives in a process of its own;
the peer's runs under `--peer`, a Python that has `torch` and `transformers` (by default this one), through
`decode_peer.py`. Both continue the same random prompts greedily, as many tokens as there are in `new`, on the CPU in
float32 with all cores; the tokens must be equal before anything is timed. A side is then timed call by call, in turn
with the other and in random order; a call gives prompts and takes tokens, so the prompt pass, copies and Python belong
to it, while compiling does not. The ratio is that of the medians, theirs / ours: above 1 we are faster. `by round`: the
median and the quartiles of the ratio within a round. `compile s`: our first call less a later one.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import BenchmarkError, Table

QUESTION = "How fast is text generated beside Hugging Face?"
PEER = Path(__file__).with_name("decode_peer.py")


@dataclasses.dataclass(frozen=True)
class Size:
    """One model, and what is asked of it."""

    num_layers: int
    d_model: int
    num_heads: int
    vocab_size: int
    positions: int
    prompt: int
    new: int


SIZES = {
    "tiny": Size(2, 32, 2, 97, 64, prompt=5, new=8),  # checks the wiring; its speed means nothing
    "small": Size(4, 128, 4, 256, 256, prompt=32, new=128),
    "medium": Size(6, 384, 6, 4096, 512, prompt=32, new=96),
    "gpt2": Size(12, 768, 12, 50257, 1024, prompt=32, new=32),
}
BATCHES = (1, 8)


class Peer:
    """Hugging Face in a process of its own: JSON lines in, JSON lines out."""

    def __init__(self, python: str, size: Size):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            command = [python, str(PEER), json.dumps(dataclasses.asdict(size)), str(path)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.versions = self._read()
            with np.load(path) as file:
                self.weights = {name: file[name] for name in file.files}

    def generate(self, prompts: np.ndarray, new: int) -> tuple[float, np.ndarray]:
        """(seconds, new tokens [B, new])."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts.tolist(), "new": new}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        return answer["seconds"], np.asarray(answer["tokens"], np.int32)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError("the peer stopped: --peer must be a Python with torch and transformers")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=10)


class Ours:
    """Our side, with the peer's weights."""

    def __init__(self, size: Size, weights: dict[str, np.ndarray]):
        from tests.golden.weights import GOLDEN, rebuild

        golden = GOLDEN["gpt2"]
        overrides = golden.overrides | {
            "model.vocab_size": size.vocab_size,
            "model.d_model": size.d_model,
            "model.num_layers": size.num_layers,
            "model.attention.num_heads": size.num_heads,
            "data.sequence_length": size.positions,
        }
        self.model = rebuild(overrides, golden.translate(weights))

    def generate(self, prompts: np.ndarray, new: int) -> tuple[float, np.ndarray]:
        """(seconds, new tokens [B, new])."""
        import jax

        from transformer.inference.generate import generate

        with jax.default_matmul_precision("highest"):
            started = time.perf_counter()
            tokens = generate(self.model, prompts, new).new_BN
            return time.perf_counter() - started, tokens


def measure(ours: Ours, peer: Peer, size: Size, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds per call of both sides at one batch size.

    Raises:
      BenchmarkError: the sides do not generate the same tokens.
    """
    prompts = np.random.default_rng(seed).integers(0, size.vocab_size, (batch, size.prompt)).astype(np.int32)
    first, mine = ours.generate(prompts, size.new)
    _, theirs = peer.generate(prompts, size.new)
    if not np.array_equal(mine, theirs):
        differ = int((mine != theirs).sum())
        raise BenchmarkError(f"the sides disagree in {differ} of {mine.size} tokens at batch {batch}")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    sides = {"ours": ours, "theirs": peer}
    order = random.Random(seed)
    for _ in range(rounds):
        for name in order.sample(list(sides), 2):
            seconds[name].append(sides[name].generate(prompts, size.new)[0])
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "batch": batch,
        "seconds": seconds,
        "distinct_tokens": len(np.unique(mine)),
        "compile_seconds": max(0.0, first - statistics.median(seconds["ours"])),
        "ratio": statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"]),
        "ratio_by_round": np.quantile(ratios, [0.5, 0.25, 0.75]).tolist(),
    }


def row(name: str, size: Size, found: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    tokens = found["batch"] * size.new
    speed = {side: f"{tokens / statistics.median(values):,.0f}" for side, values in found["seconds"].items()}
    middle, lower, upper = found["ratio_by_round"]
    return (
        f"{name}, batch {found['batch']}",
        f"{size.prompt} + {size.new}",
        speed["ours"],
        speed["theirs"],
        f"{found['ratio']:.2f}",
        f"{middle:.2f} [{lower:.2f}, {upper:.2f}]",
        f"{found['compile_seconds']:.1f}",
    )


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__ or "")
    parser.add_argument("--sizes", default="small,medium", help=f"comma list of {', '.join(SIZES)}")
    parser.add_argument("--peer", default=sys.executable, help="Python with torch and Hugging Face transformers")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each side per row")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the order within rounds")
    options = parser.parse_args(arguments)
    names = options.sizes.split(",")
    if unknown := [name for name in names if name not in SIZES]:
        parser.error(f"--sizes={unknown[0]} is not one of: {', '.join(SIZES)}")
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds} must be at least 1")
    rows, numbers = [], {}
    try:
        for name in names:
            size, peer = SIZES[name], Peer(options.peer, SIZES[name])
            try:
                ours = Ours(size, peer.weights)
                found = [measure(ours, peer, size, batch, options.rounds, options.seed) for batch in BATCHES]
            finally:
                peer.close()
            rows += [row(name, size, one) for one in found]
            numbers[name] = {"shape": dataclasses.asdict(size), "peer": peer.versions, "batches": found}
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    columns = ("model, batch", "prompt + new", "ours tokens/s", "theirs tokens/s", "ratio", "by round", "compile s")
    shapes = "; ".join(f"{n}: {SIZES[n].num_layers} layers x {SIZES[n].d_model}" for n in names)
    note = f"{shapes}. {rounds_of(options.rounds)}, greedy, float32, equal tokens."
    table = Table("Generation on the CPU, GPT-2 architecture", columns, tuple(rows), note)
    reporting.finish("decode", QUESTION, [table], numbers, options.json)
    return 0


def rounds_of(rounds: int) -> str:
    """The number of rounds, in words."""
    return f"{rounds} round{'s' if rounds != 1 else ''}"


if __name__ == "__main__":
    sys.exit(main())
