"""T5 (Raffel et al. 2020): an encoder-decoder that restores dropped spans. Bucketed distances, one table a stack,
RMSNorm before every sublayer, ReLU, no biases, unscaled attention, tied logits scaled by 1 / sqrt(d_model).

    python train.py --config=configs/t5.py                   # 2 + 2 layers, 128 wide, bytes: 0.95M parameters
    python train.py --config=configs/t5.py:t5_base           # the sizes of a preset; wants an accelerator

Sizes: tiny, and t5_small, t5_base, t5_large, t5_3b, t5_11b of transformer/analysis/presets.py, which are those of
version 1.0. The tiny one reads 1.0M bytes of Python's own standard library: 3.6e12 FLOPs, minutes on two cores,
validation loss 2.75 nats per target token (one seed, Python 3.11): a check that all parts train.

The model is that of the paper, weight for weight (tests/golden compares it with Hugging Face's). The recipe differs:
AdamW instead of Adafactor, half a cosine down from a rate of 1e-3 instead of an inverse square root down from 1e-2, no
dropout instead of 0.1, and initial weights of one standard deviation, smaller where a kernel writes into the residual
stream, instead of one by fan-in for each kernel; a
named size keeps the 32,128 rows of its vocabulary but reads the bytes of the default corpus, not C4, until data.source
and data.vocabulary say otherwise; batches of 32 windows instead of 128 (train.batch_size, train.accumulate).
"""

from transformer.analysis.presets import T5_STYLE, TINY_RUN, sized

SIZES = ("t5_small", "t5_base", "t5_large", "t5_3b", "t5_11b")
TINY = {
    **TINY_RUN,
    **T5_STYLE,
    "model.num_layers": 2,
    "optimizer.learning_rate": 2e-3,
}
RECIPE = {
    "train.steps": 524_288,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 10_000,
    "optimizer.beta2": 0.999,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": 1.0,
}


def get_config(size="tiny"):
    return sized(size, {"tiny": TINY}, SIZES, RECIPE)
