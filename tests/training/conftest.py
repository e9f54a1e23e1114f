"""A small run with everything on: dropout, microbatches, FSDP, a split and padded vocabulary."""

import pytest
from helpers import write_data

from neojax import config as configuration
from neojax.training.loop import train


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def settings(data):
    """Makes a config from overrides."""
    raw = {
        "model": {
            "n_layer": 2, "n_embd": 16, "n_head": 2, "n_ctx": 16, "n_vocab": 61, "window_size": 5,
            "embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1,
        },
        "mesh": {
            "cpu_devices": 8, "shape": "data:4, model:2", "param_layout": "embd:data",
            "layout": "batch:data, heads:model, mlp:model, vocab:model",
        },
        "data": {"train": str(data), "validation": str(data)},
        "train": {
            "batch_size": 8, "microbatch": 4, "steps": 20, "learning_rate": 1e-2, "warmup_steps": 5, "log_every": 1,  # noqa: E501
            # Independent of the number of steps, so that runs of other lengths compile to the same program.
            "schedule": "constant",
            "checkpoint_every": 5, "eval_every": 10, "eval_batches": 2, "tensorboard": False,
        },
    }  # fmt: skip

    def make(run_dir, *overrides):
        return configuration.from_dict(raw, [f"train.run_dir={run_dir}", *overrides])

    return make


@pytest.fixture(scope="session")
def whole_run(settings, tmp_path_factory):
    """The directory of an uninterrupted run of 20 steps; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(settings(run))
    return run
