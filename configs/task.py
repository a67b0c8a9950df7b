"""Synthetic tasks that a small model solves within two minutes on a CPU: task, model and objective fit together.

    python train.py --config=configs/task.py:copy           # or reverse, induction, modadd, markov
    python train.py --config=configs/task.py:sort --config.data.task_length=8

Every task of the registry runs here, with the sizes of `copy`; those named above have settings of their own. What each
of them reached, in which time, stands in tests/soak/tasks.json.
"""

from transformer.config import apply_overrides, default_config

OVERRIDES = {
    "data.source": "task",
    "model.d_model": 64,
    "model.num_layers": 2,
    "model.attention.num_heads": 4,
    "train.steps": 600,
    "train.batch_size": 64,
    "train.eval_every": 100,
    "train.checkpoint_every": 0,
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.0,
}
SETTINGS = {
    "copy": {"data.task_length": 8, "train.steps": 300},
    "reverse": {"data.task_length": 8},
    "induction": {"data.task_length": 8, "train.steps": 1000, "model.init.std": 0.1, "optimizer.learning_rate": 2e-3},
    "markov": {"data.task_length": 64, "train.steps": 300},
    # One layer suffices; strong weight decay finds the rule that holds for the pairs kept for testing too.
    "modadd": {
        "model.num_layers": 1,
        "model.d_model": 128,
        "train.batch_size": 256,
        "train.steps": 800,
        "optimizer.weight_decay": 1.0,
    },
}


def get_config(task="copy"):
    return apply_overrides(default_config(), {**OVERRIDES, "data.task": task, **SETTINGS.get(task, {})})
