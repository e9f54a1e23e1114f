"""Writes the checkpoint in `mesh_tf/` with TensorFlow itself (2.21), as gpt-neo's Saver did: two data files,
weights in float32 and bfloat16, Adam's slots, a padded vocabulary. Run in an environment with tensorflow-cpu;
the values are those of `values`, which the test makes again.
"""

from pathlib import Path

import numpy as np

STEP = 1234
N_EMBD, N_HEAD, N_CTX, N_VOCAB, PADDED, N_LAYER = 8, 2, 16, 53, 64, 2


def shapes() -> dict[str, tuple[int, ...]]:
    d = N_EMBD
    weights = {"gpt2/wte": (PADDED, d), "gpt2/wpe": (N_CTX, d), "gpt2/ln_f/g": (d,), "gpt2/ln_f/b": (d,)}
    for i in range(N_LAYER):
        h = f"gpt2/h{i}"
        for norm in ("norm_1", "norm_2"):
            weights |= {f"{h}/{norm}/g": (d,), f"{h}/{norm}/b": (d,)}
        weights |= {f"{h}/attn/{name}": (d, d) for name in "qkvo"}
        weights[f"{h}/attn/compute_output_bias/o_b"] = (d,)
        for name, (rows, columns) in {"c_fc": (d, 4 * d), "c_proj": (4 * d, d)}.items():
            weights[f"{h}/mlp/conv1d_main/{name}/kernel"] = (rows, columns)
            weights[f"{h}/mlp/conv1d_main/{name}/bias"] = (columns,)
    return weights


def values() -> dict[str, np.ndarray]:
    """Every variable but the step, float32; exact in bfloat16."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes().items():
        for suffix in ("", "/adam_m", "/adam_v"):
            found[name + suffix] = rng.integers(1, 64, shape).astype(np.float32) / 64
    return found


def main() -> None:
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    for i, (name, value) in enumerate(values().items()):
        dtype = tf.bfloat16 if name.startswith("gpt2/h1") else tf.float32
        with tf.device(f"/cpu:{i % 2}"):
            tf.get_variable(name, initializer=tf.cast(tf.constant(value), dtype))
    tf.get_variable("global_step", initializer=np.int64(STEP))
    saver = tf.train.Saver(tf.global_variables(), sharded=True, save_relative_paths=True)
    folder = Path(__file__).parent / "mesh_tf"
    folder.mkdir(exist_ok=True)
    with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        session.run(tf.global_variables_initializer())
        saver.save(session, str(folder / "model.ckpt"), global_step=STEP, write_meta_graph=False)


if __name__ == "__main__":
    main()
