"""The peer's side of `decode.py`: Hugging Face's `generate`, fed with JSON lines. Imports nothing of ours.

    python benchmarks/decode_peer.py SIZE_AS_JSON WEIGHTS.npz

First writes its weights, and its versions as the first line. Then, for each line in with `prompts` and `new`, one line
with `seconds` and `tokens`.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import torch
import transformers


def make(size: dict[str, int]) -> transformers.GPT2LMHeadModel:
    """GPT-2 of this size with random weights, large enough that greedy text does not settle on one token."""
    config = transformers.GPT2Config(
        vocab_size=size["vocab_size"],
        n_positions=size["positions"],
        n_embd=size["d_model"],
        n_layer=size["num_layers"],
        n_head=size["num_heads"],
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def main() -> None:
    """Serves until its input ends."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    model = make(json.loads(sys.argv[1]))
    np.savez(
        sys.argv[2], **{name: value.numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = torch.tensor(asked["prompts"])
        with torch.inference_mode():
            started = time.perf_counter()
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=asked["new"],
                do_sample=False,
                pad_token_id=0,
            )
            seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "tokens": out[:, prompts.shape[1] :].tolist()}), flush=True)


if __name__ == "__main__":
    main()
