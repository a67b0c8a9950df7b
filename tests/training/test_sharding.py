"""One run on one device and on eight: equal numbers, less memory on each, and sentences for meshes that cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny
from transformer.errors import ConfigError
from transformer.training.sharding import make_placement

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, because the number of devices is fixed when JAX starts.
SCRIPT = """
import json, sys
from pathlib import Path
import jax, numpy as np
from tests.training.test_sharding import ALONE, CONFIG, MEMBERS
from transformer.config import replace, resolve
from tests.tiny import nested
from transformer.training.population import Population, train_population
from transformer.training.run import load, make_program, load_dataset, train
from transformer.training.run_directory import read_rows
from transformer.training.step import flat_state

root, found = Path(sys.argv[1]), {"devices": jax.device_count()}
for name, mesh in json.loads(sys.argv[2]).items():
    config = resolve(nested({**CONFIG, **mesh, "data.path": sys.argv[3]}))
    made = make_program(config, load_dataset(config))
    state = made.init(0)
    held = sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device.id == 0)
    kernel = flat_state(state)["params.blocks.0.ffn.branch.up.kernel"]
    shapes = {"shard": kernel.addressable_shards[0].data.shape, "shape": kernel.shape}
    found[name] = {"bytes": held, **shapes}
    if made.placement is not None:
        made.placement.place = lambda state: state  # at the end nothing is left to be moved
        again = made.init(0)._replace(model_state=None)
        found[name]["at_once"] = [x.sharding == made.placement.of_leaf(x) for x in jax.tree.leaves(again)]
    if name in sys.argv[4:]:
        outcome = train(config, root / name, quiet=True)
        last = flat_state(load(outcome.path, program=made).state)
        np.savez(root / name / "last.npz", **{k: np.asarray(v) for k, v in last.items()})
        found[name] |= {"state": outcome.state, "losses": [row["loss"] for row in read_rows(outcome.path)]}

base = resolve(nested({**CONFIG, "data.path": sys.argv[3]}))
members = [replace(base, {"optimizer.learning_rate": rate, "seed": seed}) for rate, seed in MEMBERS]
made = Population(make_program(base, load_dataset(base)), len(members))
kernel = flat_state(made.init([seed for _, seed in MEMBERS]))["params.blocks.0.ffn.branch.up.kernel"]
found["members"] = {s.device.id: s.data.shape[0] for s in kernel.addressable_shards}
folders = [root / "members" / str(i) for i in range(len(members))]
train_population(members, folders, root / "members" / "shared")
found["together"] = [[row["loss"] for row in read_rows(folder)] for folder in folders]
alone = {i: train(members[i], root / "alone" / str(i), quiet=True).path for i in ALONE}
found["alone"] = {i: [row["loss"] for row in read_rows(path)] for i, path in alone.items()}
print(json.dumps(found))
"""
CONFIG = {
    "data.source": "text",
    "data.sequence_length": 16,
    "model.d_model": 16,
    "model.num_layers": 1,
    "train.steps": 6,
    "train.batch_size": 16,
    "train.accumulate": 2,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.checkpoint_every": 0,
    "eval.tokens": 256,
    "wandb.mode": "disabled",
}
MESHES = {
    "one": {},
    "data": {"devices.data": 8},
    "fsdp": {"devices.fsdp": 8},
    "both": {"devices.data": 2, "devices.fsdp": 4},
}

# Eleven members on eight devices: two each, and copies of the last one where there are no more.
MEMBERS = [(rate, seed) for seed in range(4) for rate in (1e-3, 3e-3, 1e-2)][:11]
ALONE = (0, 10)

TRAINED = ("one", "fsdp", "both")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, Path]:
    root = tmp_path_factory.mktemp("meshes")
    corpus = root / "letters.txt"
    corpus.write_bytes(np.random.default_rng(0).integers(97, 113, 6000, dtype=np.uint8).tobytes())
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(root), json.dumps(MESHES), str(corpus), *TRAINED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), root


@pytest.mark.parametrize("mesh", ["fsdp", "both"])
def test_a_mesh_changes_no_number_beyond_rounding(found, mesh):
    """Losses to 1e-5 nats; weights and moments after six steps to 1e-4 relative and 1e-5 absolute."""
    results, root = found
    assert results["devices"] == 8 and results[mesh]["state"] == "done"
    np.testing.assert_allclose(results[mesh]["losses"], results["one"]["losses"], atol=1e-5)
    assert results["one"]["losses"][0] - results["one"]["losses"][5] > 1e-3  # the tolerance tells steps apart
    mine, single = (np.load(root / name / "last.npz") for name in (mesh, "one"))
    assert set(mine) == set(single)
    for name in single:
        np.testing.assert_allclose(mine[name], single[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_no_device_ever_holds_a_state_that_is_split(found):
    """Every parameter and moment is put where it belongs, one after the other."""
    results, _ = found
    for mesh in ("fsdp", "both"):
        assert len(results[mesh]["at_once"]) > 10 and all(results[mesh]["at_once"])


def test_fsdp_splits_the_state_and_data_parallelism_copies_it(found):
    results, _ = found
    assert results["data"]["bytes"] == results["one"]["bytes"]
    assert results["data"]["shard"] == results["one"]["shape"]
    for mesh, share in (("fsdp", 8), ("both", 4)):
        assert np.prod(results[mesh]["shape"]) == share * np.prod(results[mesh]["shard"])
        expected = results["one"]["bytes"] / share
        assert expected <= results[mesh]["bytes"] < 1.1 * expected  # gains of 16 split as well, scalars do not


def test_members_are_spread_over_the_devices(found):
    results, _ = found
    assert results["members"] == {str(device): 2 for device in range(8)}


@pytest.mark.parametrize("member", ALONE)
def test_a_member_on_one_of_eight_devices_is_the_run_it_would_be_alone(found, member):
    """To 1e-5 nats; two members of other seeds or rates are further apart."""
    results, _ = found
    together = np.array(results["together"])
    assert len(together) == len(MEMBERS)
    np.testing.assert_allclose(together[member], results["alone"][str(member)], atol=1e-5)
    others = np.delete(together, member, axis=0)
    assert np.abs(others - together[member]).max(axis=1).min() > 1e-4


def test_meshes_that_cannot_be_are_one_sentence():
    with pytest.raises(
        ConfigError, match=r"devices\.data=64 x devices\.fsdp=2 needs 128 devices, but there (is|are) \d"
    ):
        make_placement(tiny({"devices.data": 64, "devices.fsdp": 2, "train.batch_size": 128}))
    with pytest.raises(ConfigError, match=r"train\.accumulate=4 is not divisible by devices\.data x devices\.fsdp = 8"):
        tiny({"devices.fsdp": 8})
    with pytest.raises(ConfigError, match=r"eval\.batch_size=3 is not divisible by"):
        tiny({"devices.data": 2, "eval.batch_size": 3})
    with pytest.raises(ConfigError, match=r"devices\.data=0 must be at least 1"):
        tiny({"devices.data": 0})
    with pytest.raises(ConfigError, match=r"execution=population: spreads members over the devices by itself"):
        tiny({"devices.data": 2, "execution": "population"})
    assert make_placement(tiny()) is None
