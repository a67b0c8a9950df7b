"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm and biases everywhere, GELU by tanh, tied embeddings.

    python train.py --config=configs/gpt2.py                 # 4 layers, 128 wide, bytes: 0.84M parameters
    python train.py --config=configs/gpt2.py:gpt2_124m       # the sizes of a preset; wants an accelerator
    python -m transformer.analysis.accounting --config=configs/gpt2.py:gpt2_124m

Sizes: tiny, and gpt2_124m, gpt2_355m, gpt2_774m, gpt2_1558m, gpt3_175b of transformer/analysis/presets.py. The tiny one
reads 1.0M bytes of Python's own standard library: 5.8e12 FLOPs, minutes on two cores, validation loss 2.13 nats per
byte (one seed, Python 3.11).

The model is that of the paper, weight for weight (tests/golden compares it with Hugging Face's). The recipe differs:
learning rate, weight decay and clipping are those of GPT-3 (Brown et al. 2020, table 2.1 and appendix B; the rate is
that of the nearest size), because the paper of GPT-2 states none; the corpus is not WebText, which was never released;
a named size keeps the 50,257 rows of its vocabulary but reads the bytes of the default corpus until data.source and
data.vocabulary say otherwise; no dropout, as no text is seen twice; batches of 32 windows instead of 512
(train.batch_size, train.accumulate).
"""

from transformer.analysis.presets import GPT2_STYLE, TINY_RUN, sized

SIZES = ("gpt2_124m", "gpt2_355m", "gpt2_774m", "gpt2_1558m", "gpt3_175b")
TINY = {
    **TINY_RUN,
    **GPT2_STYLE,
    "optimizer.learning_rate": 1e-3,
}
RATES = {"gpt2_124m": 6e-4, "gpt2_355m": 3e-4, "gpt2_774m": 2.5e-4, "gpt2_1558m": 2e-4, "gpt3_175b": 0.6e-4}
RECIPE = {
    "train.steps": 100_000,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
    "optimizer.warmup_steps": 2000,
    "optimizer.beta2": 0.95,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
}


def get_config(size="tiny"):
    return sized(size, {"tiny": TINY}, SIZES, {**RECIPE, "optimizer.learning_rate": RATES.get(size, 6e-4)})
