"""Data that people hold already trains as it is: a Megatron pair, and gpt-neo's TFRecords beside it."""

import shutil

import pytest
import tfrecord_writer as writer

from neojax import config as configuration
from neojax.data.store import TokenStore
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

N_CTX = 64


def run(tmp_path, sources, name, steps):
    settings = {
        "model": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_ctx": N_CTX, "n_vocab": 5000, "window_size": 16},  # noqa: E501
        "data": {"train": sources},
        "train": {
            "run_dir": str(tmp_path / name), "steps": steps, "batch_size": 8, "learning_rate": 0.02, "log_every": 1,  # noqa: E501
            "warmup_steps": 5, "schedule": "constant", "tensorboard": False,
        },
    }  # fmt: skip
    train(configuration.from_dict(settings))
    return {row["step"]: row["loss"] for row in read_metrics(tmp_path / name)}


@pytest.mark.slow
def test_a_mixture_of_both_trains_and_resumes_bit_for_bit(tmp_path, shared_data):
    prefix = tmp_path / "megatron"  # a copy, since what is found in it is kept beside it
    for suffix in (".bin", ".idx"):
        shutil.copy(
            shared_data / "megatron" / f"meg-gpt2-openwebtext_text_document{suffix}", f"{prefix}{suffix}"
        )
    tokens = TokenStore(prefix).read(0, 400 * (N_CTX + 1)).reshape(400, -1)
    writer.write(tmp_path / "text_0_400.tfrecords", tokens)
    sources = [{"path": str(prefix), "weight": 2}, {"path": str(tmp_path / "*.tfrecords"), "weight": 1}]
    whole = run(tmp_path, sources, "whole", 40)
    assert whole[1] > 8.0 and sum(whole[step] for step in range(36, 41)) / 5 < 7.2
    run(tmp_path, sources, "parts", 15)
    assert run(tmp_path, sources, "parts", 40) == whole
