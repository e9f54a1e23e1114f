import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial

import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from neojax.config import TrainConfig
from neojax.errors import NeojaxError
from neojax.runs import integrity
from neojax.runs.checkpoint import Checkpoints, DamagedError
from neojax.training import adafactor
from neojax.training.adafactor import as_stored
from neojax.training.optimizer import make_optimizer

DIMS = {"wte": ("vocab", "embd"), "blocks.0.attn.query": ("layers", "embd", "heads"), "norm.scale": ("embd",)}
SIZES = {"vocab": 24, "embd": 16, "layers": 3, "heads": 4}
MESHES = {
    8: ((4, 2), {"embd": "data", "heads": "model", "vocab": "model"}),
    4: ((1, 4), {"heads": "model", "vocab": "model"}),
    1: ((1, 1), {}),
}


@pytest.fixture(autouse=True)
def factor_tiny_matrices(monkeypatch):
    monkeypatch.setattr(adafactor, "MIN_FACTORED", 2)


def mesh_of(devices):
    return jax.make_mesh(MESHES[devices][0], ("data", "model"), devices=jax.devices()[:devices])


def make(mesh, layout, optimizer="adamw", seed=0, n_vocab=None, **sizes):
    """Parameters and the optimizer state after a step, on `mesh` (None: one device)."""
    rng = np.random.default_rng(seed)
    params = {n: rng.normal(size=[(SIZES | sizes)[d] for d in ds]).astype("f4") for n, ds in DIMS.items()}
    if mesh:
        spec = {n: PartitionSpec(*(layout.get(d) for d in ds)) for n, ds in DIMS.items()}
        params = {n: jax.device_put(p, NamedSharding(mesh, spec[n])) for n, p in params.items()}
    train = TrainConfig(optimizer=optimizer, warmup_steps=0, adafactor_momentum=0.5)
    opt = make_optimizer(train, DIMS, n_vocab)
    params, opt_state, _ = jax.jit(opt.update)(params, jax.jit(opt.init)(params), params)
    return {"params": params, "opt_state": opt_state}


def make_on(devices, **kwargs):
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        return make(mesh, MESHES[devices][1], **kwargs)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 10 and 20 (seeds 10 and 20), not to be changed."""
    run = tmp_path_factory.mktemp("run")
    with Checkpoints(run, keep=3) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make_on(8, seed=step), {"config": "model: {}\n", "n_vocab": 21})
    return run


@pytest.fixture
def run(saved, tmp_path):
    """A copy of `saved` to break."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_eight_devices_to_four_to_one_bit_for_bit(tmp_path, optimizer):
    first = make_on(8, optimizer=optimizer)
    state, step = first, 0
    for devices in (4, 1):
        target = make_on(devices, optimizer=optimizer, seed=1)
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            step += 1
            checkpoints.save(step, state, {})
            checkpoints.wait()
            state = checkpoints.restore(step, abstract(target))
        assert_same(state, first)
        assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, target)


def test_what_eval_shape_gives_is_enough(saved):
    expected = make_on(8, seed=20)
    with Checkpoints(saved) as checkpoints:
        mesh = mesh_of(8)
        with jax.set_mesh(mesh):
            like = jax.eval_shape(lambda: make(mesh, MESHES[8][1]))
            state = checkpoints.restore(20, like)
        assert_same(state, expected)
        wanted = jax.tree.map(lambda x: x.sharding.spec, expected)
        assert jax.tree.map(lambda x: x.sharding.spec, state) == wanted
        alone = checkpoints.restore(20, jax.eval_shape(lambda: make(None, {})))
        assert_same(alone, expected)
        assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(alone))


def test_parameters_alone_do_not_need_the_optimizer_state(run):
    shutil.rmtree(run / "checkpoints" / "20" / "opt_state")
    expected = make_on(8, seed=20)["params"]
    with Checkpoints(run) as checkpoints:
        assert_same(checkpoints.restore_params(20, abstract(expected)), expected)
        half = {n: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16) for n, p in expected.items()}
        assert checkpoints.restore_params(20, half)["wte"].dtype == jnp.bfloat16
        assert checkpoints.restore_meta(20)["config"] == "model: {}\n"


def test_a_save_under_way_is_not_touched_by_donation(tmp_path):
    """With 24 MB, which are not yet written when five steps have gone over them; JAX and Orbax may copy, or
    wait."""
    state = make_on(8, seed=3, vocab=1 << 17)
    expected = jax.tree.map(np.array, state)
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints, jax.set_mesh(mesh_of(8)):
        double(jax.tree.map(jnp.copy, state))  # compiled
        checkpoints.save(1, state, {})
        for step in range(5):
            before, state = state, jax.block_until_ready(double(state))
            assert step == 0 or all(x.is_deleted() for x in jax.tree.leaves(before))
        assert not (tmp_path / "checkpoints" / "1").exists(), "the save was over before the donation"
        checkpoints.wait()
        assert_same(checkpoints.restore(1, abstract(state)), expected)


def test_the_newest_are_kept(tmp_path):
    state = make_on(1)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (5, 10, 15):
            checkpoints.save(step, state, {})
        checkpoints.save(15, state, {"again": True})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 15] and checkpoints.latest() == 15
        assert "again" not in checkpoints.restore_meta(15)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "15"]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("padded", [22, 21, 28])
def test_padding_of_the_vocabulary_may_change(tmp_path, padded, optimizer):
    with Checkpoints(tmp_path, keep=1, dims=DIMS, n_vocab=21) as checkpoints:
        checkpoints.save(1, make_on(8, optimizer=optimizer), {})
        checkpoints.wait()
        target = make_on(1, optimizer=optimizer, vocab=padded)
        got = checkpoints.restore(1, abstract(target))
    source = make_on(8, optimizer=optimizer)
    for a, b in zip(jax.tree.leaves(source), jax.tree.leaves(got)):
        a, b = np.asarray(a), np.asarray(b)
        common = tuple(slice(0, min(m, n)) for m, n in zip(a.shape, b.shape))
        np.testing.assert_array_equal(a[common], b[common])
        if padded == 28 and a.shape != b.shape:
            assert b.shape[0] == 28 and not b[24:].any()
    assert got["params"]["wte"].shape == (padded, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab": 20}, r"wte has shape \(24, 16\), the model wants \(20, 16\)"),
        ({"layers": 4}, r"blocks.0.attn.query has shape \(3, 16, 4\), the model wants \(4, 16, 4\)"),
    ],
)
def test_misshapen_parameters_are_named(saved, change, message):
    with Checkpoints(saved, dims=DIMS, n_vocab=21) as checkpoints, pytest.raises(NeojaxError, match=message):
        checkpoints.restore(20, abstract(make_on(1, **change)))


def test_missing_and_extra_parameters_are_named(saved):
    params = abstract(make_on(1)["params"])
    with Checkpoints(saved) as checkpoints:
        scale = params.pop("norm.scale")
        with pytest.raises(NeojaxError, match=r"holds parameter norm.scale \(16,\), which the model has not"):
            checkpoints.restore_params(20, params)
        with pytest.raises(
            NeojaxError, match=r"has no parameter norm.scales \(16,\).*did you mean norm.scale\?"
        ):
            checkpoints.restore_params(20, {**params, "norm.scales": scale})
        with pytest.raises(NeojaxError, match=r"optimizer state .* was train.optimizer changed"):
            checkpoints.restore(20, abstract(make_on(1, optimizer="adafactor")))
        with pytest.raises(NeojaxError, match=r"no checkpoint of step 7 .* \[10, 20\]"):
            checkpoints.restore_meta(7)


@pytest.mark.parametrize("devices", [1, 8])
def test_adafactors_second_moments_stay_factored_as_they_were_saved(tmp_path, monkeypatch, devices):
    """As of runs whose shorter sides were factored; they go on as if nothing had changed."""
    optimizer = make_optimizer(TrainConfig(optimizer="adafactor"), DIMS, 21)
    update = jax.jit(optimizer.update)
    with Checkpoints(tmp_path, keep=1, dims=DIMS, n_vocab=21) as checkpoints:
        saved = make_on(8, optimizer="adafactor", n_vocab=21)
        checkpoints.save(1, saved, {})
        checkpoints.wait()
        monkeypatch.undo()
        with jax.set_mesh(mesh_of(devices)):
            fresh = make_on(devices, optimizer="adafactor", n_vocab=21)
            assert not fresh["opt_state"][0][0].row
            adapt = partial(as_stored, dims=DIMS, n_vocab=21)
            got = checkpoints.restore(1, abstract(fresh), adapt)
            assert_same(got, saved)
            opt_state = got["opt_state"][0][0], *got["opt_state"][1:]
            one, state, _ = update(got["params"], opt_state, got["params"])
    assert {"wte", "blocks.0.attn.query"} == state[0].row.keys() == state[0].col.keys()
    with jax.set_mesh(mesh_of(8)):
        opt_state = saved["opt_state"][0][0], *saved["opt_state"][1:]
        other, _, _ = update(saved["params"], opt_state, saved["params"])
    for name, p in one.items():
        np.testing.assert_allclose(p, other[name], rtol=1e-6)


@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_every_damaged_file_is_an_error_that_names_the_folder(run, damage):
    folder = run / "checkpoints" / "20"
    like = abstract(make_on(8, seed=20))
    files = [f for f in folder.rglob("*") if f.is_file() and f.parent != folder]
    assert len(files) > 12
    with Checkpoints(run) as checkpoints:
        for file in files:
            content = file.read_bytes()
            match damage:
                case "truncated":
                    file.write_bytes(content[: len(content) // 2])
                case "missing":
                    file.unlink()
                case "emptied":
                    file.write_bytes(b"")
            with pytest.raises(
                NeojaxError, match=f"{re.escape(str(folder))} is damaged.* go on from step 10"
            ) as e:
                checkpoints.restore(20, like)
            assert "\n" not in str(e.value)
            file.write_bytes(content)
        checkpoints.restore(20, like)


def test_a_damaged_newest_checkpoint_stays_the_newest(run):
    shutil.rmtree(run / "checkpoints" / "20" / "params")
    (run / "checkpoints" / "20" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(run, keep=3) as checkpoints:
        assert checkpoints.latest() == 20
        with pytest.raises(NeojaxError, match="damaged"):
            checkpoints.restore(20, abstract(make_on(1)))
    shutil.rmtree(run / "checkpoints" / "20")  # as the error says
    with Checkpoints(run, keep=3) as checkpoints:
        assert checkpoints.latest() == 10
        assert_same(checkpoints.restore(10, abstract(make_on(1))), make_on(8, seed=10))


def test_a_newer_format_is_an_error(run):
    folder = run / "checkpoints" / "20"
    meta = folder / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"format": 1', '"format": 9'))
    (folder / "files.json").unlink()
    integrity.seal(folder, {})
    with Checkpoints(run) as checkpoints, pytest.raises(NeojaxError, match="format 9, newer"):
        checkpoints.restore_meta(20)


KILLED = """
    import os, signal, sys
    import jax.numpy as jnp
    from neojax.runs.checkpoint import Checkpoints
    from neojax.runs.shelf import Folder
    # Everything is written, the rename is to come.
    Folder._name = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    checkpoints = Checkpoints(sys.argv[1], keep=3)
    checkpoints.save(30, {"params": {"a": jnp.ones(3)}, "opt_state": {"count": jnp.ones(1)}}, {})
    checkpoints.wait()
"""


def test_a_save_that_was_killed_is_no_checkpoint(run):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(run)])
    assert done.returncode == -9
    half = set(os.listdir(run / "checkpoints")) - {"10", "20"}
    assert len(half) == 1
    with Checkpoints(run) as reader:  # a reader leaves alone what may be a save under way
        assert reader.latest() == 20
        assert half <= set(os.listdir(run / "checkpoints"))
    with Checkpoints(run, keep=3) as checkpoints:
        assert checkpoints.latest() == 20
        checkpoints.save(30, make_on(1), {})
    assert sorted(os.listdir(run / "checkpoints")) == ["10", "20", "30"]


def test_a_run_without_checkpoints_has_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
    assert not list(tmp_path.iterdir())


def test_saving_and_reading_are_silent(tmp_path):
    code = """
        import sys
        import jax, jax.numpy as jnp
        from neojax.runs.checkpoint import Checkpoints
        state = {"params": {"a": jnp.ones(3)}, "opt_state": {"count": jnp.ones(1)}}
        for keep in (2, None):
            with Checkpoints(sys.argv[1], keep) as checkpoints:
                if keep:
                    checkpoints.save(1, state, {})
                    checkpoints.wait()
                checkpoints.restore(checkpoints.latest(), jax.eval_shape(lambda: state))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_list_of_files_is_complete(saved):
    folder = saved / "checkpoints" / "20"
    listed = json.loads((folder / "files.json").read_text())["files"]
    there = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert there == {*listed, "files.json"}
    for name, entry in listed.items():
        assert entry == {
            "bytes": (folder / name).stat().st_size,
            "checksum": checksum_of((folder / name).read_bytes()),
        }


def checksum_of(content):
    return f"{google_crc32c.value(content[:-4]):08x}{content[-4:].hex()}"


@pytest.mark.parametrize("name", ["params/manifest.ocdbt", "opt_state/manifest.ocdbt"])
def test_a_file_of_another_checkpoint_is_seen_though_it_ends_with_its_own_checksum(run, name):
    """All files that end with their CRC-32C have one and the same, if they are of one size."""
    older, folder = (run / "checkpoints" / step for step in ("10", "20"))
    other, own = (older / name).read_bytes(), (folder / name).read_bytes()
    if other == own or len(other) != len(own):
        other = own[:-5] + bytes([own[-5] ^ 1])
        other += google_crc32c.value(other).to_bytes(4, "little")
    assert google_crc32c.value(other) == google_crc32c.value(own)
    (folder / name).write_bytes(other)
    assert integrity.listing(folder).fault(folder) == (
        f"{name} is not what was written: its checksum is {checksum_of(other)}"
    )


def kind_of(name):
    """The file's kind: its name without what is drawn for it."""
    return re.sub(r"[0-9a-f]{32}", "*", name)


def test_a_flipped_bit_in_any_kind_of_file_is_one_line_that_names_it(run):
    folder = run / "checkpoints" / "20"
    like = abstract(make_on(8, seed=20))
    kinds = {kind_of(str(f.relative_to(folder))): f for f in folder.rglob("*") if f.is_file()}
    assert len(kinds) >= 20
    rng = np.random.default_rng(0)
    with Checkpoints(run) as checkpoints:
        for kind, file in kinds.items():
            content = bytearray(file.read_bytes())
            for bit in {0, 8 * len(content) - 1, *rng.integers(0, 8 * len(content), 4).tolist()}:
                content[bit // 8] ^= 1 << bit % 8
                file.write_bytes(content)
                with pytest.raises(DamagedError) as error:
                    checkpoints.restore(20, like)
                text = str(error.value)
                assert f"checkpoint {folder} is damaged" in text and "go on from step 10" in text, (kind, bit)
                assert f"({file.relative_to(folder)} " in text and "\n" not in text, (kind, bit)
                content[bit // 8] ^= 1 << bit % 8
            file.write_bytes(content)
        assert_same(checkpoints.restore(20, like), make_on(8, seed=20))


def test_readers_share_the_files_and_miss_none(saved, monkeypatch):
    folder = saved / "checkpoints" / "20"
    listing = integrity.listing(folder)
    read: list[list[str]] = []
    real = integrity.checksum

    def noted(path):
        read[-1].append(str(path))
        return real(path)

    monkeypatch.setattr(integrity, "checksum", noted)
    for index in range(3):
        read.append([])
        assert listing.fault(folder, part=(index, 3)) is None
    assert sorted(n for names in read for n in names) == sorted(str(folder / n) for n in listing.files)
    assert all(names for names in read)


def test_checkpoints_from_before_checksums_still_open_and_their_damage_is_one_line(run, capfd):
    folder = run / "checkpoints" / "20"
    sizes = {n: (folder / n).stat().st_size for n in integrity.listing(folder).files}
    del sizes["commit_success.txt"]
    sizes["_CHECKPOINT_METADATA"] -= 15  # Orbax wrote the time of its commit into it after the list was made
    (folder / "files.json").write_text(json.dumps(sizes, indent=0))
    like = abstract(make_on(8, seed=20))
    with Checkpoints(run) as checkpoints:
        assert_same(checkpoints.restore(20, like), make_on(8, seed=20))
        # What Orbax and TensorStore meet in them by themselves: many kinds of error, some from threads of
        # theirs.
        rng = np.random.default_rng(0)
        lines = set()
        for file in (f for f in folder.rglob("*") if f.is_file() and f.parent != folder):
            content = bytearray(file.read_bytes())
            for byte in rng.integers(0, len(content), 4).tolist():
                content[byte] ^= 255
                file.write_bytes(content)
                try:
                    checkpoints.restore(20, like)
                except NeojaxError as e:
                    lines.add(str(e))
                content[byte] ^= 255
            file.write_bytes(content)
        assert len(lines) > 10 and not any("\n" in line for line in lines)
        assert "".join(capfd.readouterr()) == ""
        (folder / "params" / "_METADATA").write_text("{")
        with pytest.raises(DamagedError, match=r"params/_METADATA has 1 bytes of \d+"):
            checkpoints.restore(20, like)
