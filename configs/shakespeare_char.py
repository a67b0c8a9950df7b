"""nanoGPT's GPU recipe for character-level Shakespeare: its sizes, schedule and data split in our trainer.

    python train.py --config=configs/shakespeare_char.py              # tiny_shakespeare through TFDS
    python train.py --config=configs/shakespeare_char.py:input.txt    # the same text from a file, split 90/10

Published (github.com/karpathy/nanoGPT, README): best validation loss 1.4697 nats per character, about 3 minutes on one
A100. There with 16-bit products, which take `--config.numerics.compute_dtype=bfloat16
--config.numerics.matmul_precision=default` here. Not measured to its end yet: on one H200 a step took 7 to 10 ms, and
after 750 steps the loss on the whole validation split was 1.5804. On two CPU cores it would take most of a day.
"""

from transformer.config import apply_overrides, default_config

OVERRIDES = {
    "data.vocabulary": "characters",
    "data.sequence_length": 256,
    "data.sampling": "replacement",
    "model.num_layers": 6,
    "model.d_model": 384,
    "model.attention.num_heads": 6,
    "model.position.kind": "learned",
    "model.dropout": 0.2,
    "train.steps": 5000,
    "train.batch_size": 64,
    "train.eval_every": 250,
    "train.checkpoint_every": 500,
    "optimizer.learning_rate": 1e-3,
    "optimizer.final_fraction": 0.1,
    "optimizer.warmup_steps": 100,
    "optimizer.beta2": 0.99,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
}


def get_config(path=""):
    corpus = (
        {"data.source": "text", "data.path": path, "data.validation_fraction": 0.1}
        if path
        else {"data.source": "tfds", "data.tfds_name": "tiny_shakespeare"}
    )
    return apply_overrides(default_config(), {**OVERRIDES, **corpus})
