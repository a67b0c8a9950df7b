"""Llama (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, no biases, grouped queries, untied embeddings.

    python train.py --config=configs/llama.py                # 4 layers, 128 wide, bytes: 0.79M parameters
    python train.py --config=configs/llama.py:llama2_7b      # the sizes of a preset; wants many accelerators

Sizes: tiny, and llama2_7b, llama2_13b, llama2_70b, llama3_8b, llama3_70b of transformer/analysis/presets.py. The tiny
one has four query heads to two key-value heads and a hidden width of 8/3 d_model, the two thirds of a gated network; it
reads 1.0M bytes of Python's own standard library: 5.4e12 FLOPs, minutes on two cores, validation loss 1.61 nats per
byte (one seed, Python 3.11).

The model is that of the papers, weight for weight (tests/golden compares it with Hugging Face's), except that
the rope scaling of Llama 3.1 is missing. Learning rate (half as high for 70B), warm-up, schedule, betas, weight decay
and clipping are those of Llama 2 (section 2.2); the corpus is not theirs, batches hold 32 windows instead of 4M tokens
(train.batch_size, train.accumulate), and a named size keeps the rows of its vocabulary but reads the bytes of the
default corpus until data.source and data.vocabulary say otherwise.
"""

from transformer.analysis.presets import LLAMA_STYLE, TINY_RUN, sized

SIZES = ("llama2_7b", "llama2_13b", "llama2_70b", "llama3_8b", "llama3_70b")
TINY = {
    **TINY_RUN,
    **LLAMA_STYLE,
    "model.attention.num_kv_heads": 2,
    "model.ffn.match": "params",
    "optimizer.learning_rate": 1e-3,
}
RECIPE = {
    "train.steps": 500_000,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
    "optimizer.warmup_steps": 2000,
    "optimizer.schedule": "cosine",
    "optimizer.final_fraction": 0.1,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.95,
    "optimizer.epsilon": 1e-5,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
}


def get_config(size="tiny"):
    rate = 1.5e-4 if size.endswith("70b") else 3e-4
    return sized(size, {"tiny": TINY}, SIZES, {**RECIPE, "optimizer.learning_rate": rate})
