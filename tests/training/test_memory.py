"""Sizes that cannot be are refused before there is any work; sizes that fit never are."""

import jax
import jax.numpy as jnp
import pytest
from helpers import layout_of

from neojax.data.batch import Batch
from neojax.data.share import BATCH_DIMS
from neojax.errors import NeojaxError
from neojax.host_memory import host_memory
from neojax.layout.mesh import make_layout
from neojax.training import loop, memory
from neojax.training.memory import Memory, check_memory, needed
from neojax.training.state import abstract_state
from neojax.training.step import make_train_step

BIG = 2_000_000_000


@pytest.fixture
def machine(monkeypatch):
    """A machine with 25 GB, whatever this one has."""
    monkeypatch.setattr(memory, "host_memory", lambda: 25 * 10**9)


@pytest.mark.parametrize(
    "sizes",
    [
        {"train.batch_size": BIG, "train.microbatch": 8},
        {"train.batch_size": 4 * 10**6, "train.microbatch": 4 * 10**6, "data.prefetch": 1},
        {"data.prefetch": BIG},
        {"model.n_vocab": BIG},
        {"model.n_embd": BIG},
        {"model.n_ctx": BIG},
        {"model.n_layer": 100_000, "model.n_embd": 512},
        {"model.mlp.width": BIG},
        {"model.attention.memory_slots": BIG},
    ],
    ids=lambda sizes: ", ".join(sizes),
)
def test_the_key_is_named_with_the_most_that_may_fit(sizes, machine, settings):
    def config(values):
        return settings("never-made", "train.microbatch=0", *(f"{k}={v}" for k, v in values.items()))

    layout = make_layout(config({}).mesh)
    check_memory(config({}), layout)
    with pytest.raises(NeojaxError) as error:
        check_memory(config(sizes), layout)
    text = str(error.value)
    assert "\n" not in text and "25 GB" in text
    named, key = text.partition(": ")[2], max(sizes, key=sizes.__getitem__)
    if "train.microbatch" in sizes and key == "train.batch_size" and sizes["train.microbatch"] > 8:
        key = "train.microbatch"  # the batch alone would do
    assert named.startswith(f"{key}={sizes[key]}; it may be up to ")
    most = int(named.split("up to ")[1].split()[0].replace(",", ""))
    assert 0 < most < sizes[key]
    if "microbatch" not in key:
        check_memory(config(sizes | {key: most}), layout)


def test_where_no_key_alone_would_do_all_are_named(machine, settings):
    config = settings("never-made", f"model.n_ctx={BIG}", f"model.n_vocab={BIG}")
    with pytest.raises(NeojaxError, match=rf"lower .*model.n_ctx={BIG}.*model.n_vocab={BIG}"):
        check_memory(config, make_layout(config.mesh))


def test_a_run_that_cannot_fit_leaves_nothing(machine, settings, tmp_path):
    with pytest.raises(NeojaxError, match=r"train\.batch_size"):
        loop.train(settings(tmp_path / "run", f"train.batch_size={BIG}"))
    assert not (tmp_path / "run").exists()


def test_devices_that_tell_their_memory_are_asked(settings, monkeypatch):
    config = settings("never-made", "model.n_vocab=1000000")
    layout = make_layout(config.mesh)
    monkeypatch.setattr(memory, "needed", lambda config, _: Memory(8 * config.model.n_vocab, 0))
    monkeypatch.setattr(memory, "available", lambda _: Memory(4_000_000, 1))
    with pytest.raises(
        NeojaxError, match=r"8 MB of each device's memory, .* 4 MB: model.n_vocab.* up to 500,000"
    ):
        check_memory(config, layout)


def test_a_run_never_takes_less_than_is_counted(settings):
    """The compiler's own count, without what the host reads ahead."""
    one = ("model.n_layer=1", "model.attention_types=[global]", "model.n_vocab=1000", "train.remat=full")
    config = settings("never-made", *one)
    layout = make_layout(config.mesh)
    with jax.set_mesh(layout.mesh):
        model, optimizer = loop.build(config, layout)
        rows = config.train.microbatch or config.train.batch_size
        shape = (config.train.batch_size // rows, rows, config.model.n_ctx)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.sharding(BATCH_DIMS, shape))
        step = make_train_step(model, optimizer, config.train)
        state = abstract_state(model, optimizer)
        found = step.lower(state, Batch(tokens, tokens), jnp.int32(0)).compile().memory_analysis()
    ahead = config.data.prefetch * config.train.batch_size * config.model.n_ctx * memory.TOKEN_BYTES
    counted = (needed(config, layout).host - ahead) / layout.mesh.size
    assert 0.3 * found.argument_size_in_bytes < counted
    assert counted <= found.argument_size_in_bytes + found.temp_size_in_bytes


def test_frozen_parameters_need_no_moments(settings):
    one = ("model.n_layer=1", "model.attention_types=[global]", "model.n_vocab=1000")
    whole, part = (settings("never-made", *one, f"train.frozen={frozen}") for frozen in ("[]", "[vocab]"))
    layout = make_layout(whole.mesh)
    table = 4 * 1000 * 16  # bytes; every device of the mesh has an eighth
    assert needed(whole, layout).host - needed(part, layout).host == 2 * table


def test_memory_is_that_of_the_machine_or_of_the_container(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert host_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal:   1000 kB\nMemFree:  10 kB\nSwapTotal:  100 kB\nHugePages_Total:  0\n")
    assert host_memory(tmp_path) == 1100 * 1024
    write("proc/self/cgroup", "0::/jobs/one/step\n")
    write("sys/fs/cgroup/jobs/one/step/memory.max", "max\n")
    assert host_memory(tmp_path) == 1100 * 1024
    write("sys/fs/cgroup/jobs/one/memory.max", "500000\n")
    assert host_memory(tmp_path) == 500000 + 100 * 1024
    write("proc/self/cgroup", "3:cpu:/a\n2:memory:/jobs\n")
    write("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "9223372036854771712\n")
    assert host_memory(tmp_path) == 1100 * 1024
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n")
    assert host_memory(tmp_path) == 400000 + 100 * 1024


def test_this_machine_tells_its_memory():
    assert host_memory() > 10**8 and memory.available(layout_of("data:1")).host == host_memory()
