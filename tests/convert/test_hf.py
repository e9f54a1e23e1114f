"""Hugging Face directories: the weights come and go bit for bit, within bounded memory, and bad files are
named."""

import json
import os
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import layout_of, model_config, noisy, tiny
from safetensors.numpy import load_file, save_file

from neojax.config import replaced
from neojax.convert import hf, hf_tensors
from neojax.convert.tensor_files import open_tensors
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.compute import Compute

GPT2 = {"family": "gpt2"}
SPLIT = ("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
HEAD_DIM = ("data:2, model:4", "batch:data, head_dim:model", "mlp:data, heads:data, positions:data+model")


def random_model(layout=None, **changes):
    """A model of random numbers, zero where the vocabulary is padded."""
    model = Transformer(tiny(**changes), layout)
    rng = np.random.default_rng(0)
    params = {}
    for name, spec in model.stored().items():
        value = rng.normal(size=spec.shape).astype(np.float32)
        if "vocab" in model.dims()[name]:
            value[model.config.n_vocab :] = 0
        params[name] = jax.device_put(value, spec.sharding)
    return model.bind(params)


def true_values(model):
    """Parameters without the rows that pad the vocabulary."""
    rows = model.config.n_vocab
    return {
        name: np.asarray(p)[:rows] if "vocab" in model.dims()[name] else np.asarray(p)
        for name, p in model.params().items()
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def saved(tmp_path):
    """A directory in one file, safe to spoil."""
    hf.save(random_model(), tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(folder, change):
    tensors = load_file(folder / hf.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / hf.WEIGHTS)


@pytest.mark.parametrize("changes", [{}, GPT2, {"tie_word_embeddings": False}], ids=["neo", "gpt2", "untied"])
@pytest.mark.parametrize("layout", [("data:1",), SPLIT, HEAD_DIM], ids=["one", "split", "head_dim"])
def test_out_and_in_again_is_bit_for_bit(changes, layout, tmp_path):
    model = random_model(layout_of(*SPLIT), **changes)
    hf.save(model, tmp_path / "out", max_shard_size=30_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    again = hf.load(tmp_path / "out", layout_of(*layout))
    assert_same(true_values(model), true_values(again))
    for name, spec in again.stored().items():
        assert again.params()[name].sharding == spec.sharding, name
    kept = replaced(again.config, "attention.types", model.config.attention.types)
    assert replaced(kept, "attention.window", model.config.attention.window) == model.config
    assert again.config.attention_layers == model.config.attention_layers


def test_padding_of_the_vocabulary_is_zero_after_loading(saved):
    table = np.asarray(hf.load(saved, layout_of(*SPLIT)).params()["wte"])
    assert table.shape[0] > tiny().n_vocab
    assert not table[tiny().n_vocab :].any()


def test_unrolled_layers_get_the_same_weights(saved):
    stacked, own = hf.load(saved).params(), hf.load(saved, compute=Compute(stacked=False)).params()
    for layer in range(4):
        group, repeat = layer % 2, layer // 2
        for role in ("attn.query", "mlp.down", "norm_2.bias"):
            np.testing.assert_array_equal(
                own[f"blocks.{layer}.{role}"], stacked[f"blocks.{group}.{role}"][repeat]
            )


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_are_read_exactly(saved, kind):
    tensors = {name: t.astype(kind) for name, t in load_file(saved / hf.WEIGHTS).items()}
    save_file(tensors, saved / hf.WEIGHTS)
    wte = hf.load(saved).params()["wte"]
    assert wte.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(wte), tensors["transformer.wte.weight"].astype(np.float32))


def test_reading_in_small_chunks_changes_nothing(saved, monkeypatch):
    whole = hf.load(saved, layout_of(*SPLIT))
    monkeypatch.setattr(hf_tensors, "CHUNK", 500)
    assert_same(true_values(whole), true_values(hf.load(saved, layout_of(*SPLIT))))


def test_old_buffers_and_a_tied_output_are_ignored_and_the_prefix_is_optional(saved):
    before = true_values(hf.load(saved))

    def age(tensors):
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        tensors.clear()
        tensors |= bare
        for layer in range(4):
            tensors[f"h.{layer}.attn.attention.bias"] = np.ones((1, 1, 24, 24), np.float32)
            tensors[f"h.{layer}.attn.attention.masked_bias"] = np.float32(-1e9)[None]
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    edit_tensors(saved, age)
    assert_same(before, true_values(hf.load(saved)))


BAD = {
    "missing": (
        lambda t: t.pop("transformer.h.1.mlp.c_fc.weight"),
        r"no tensor transformer\.h\.1\.mlp\.c_fc\.weight",
    ),
    "missing many": (lambda t: [t.pop(n) for n in list(t) if ".ln_1." in n], r"ln_1\.\w+ \(and 7 more\)"),
    "extra": (lambda t: t.update(score=np.zeros((2, 2), "f4")), r"holds transformer\.score, which"),
    "layer": (
        lambda t: t.update({"transformer.h.4.ln_1.bias": np.zeros(32, "f4")}),
        r"holds transformer\.h\.4\.ln_1\.bias",
    ),
    "shape": (
        lambda t: t.update({"transformer.wpe.weight": np.zeros((9, 32), "f4")}),
        r"wpe\.weight has shape \[9, 32\], but by config.json it has \[24, 32\]",
    ),
    "type": (
        lambda t: t.update({"transformer.wpe.weight": np.zeros((24, 32), "i4")}),
        r"wpe\.weight is of type I32, expected F16",
    ),
    "output": (
        lambda t: t.update({"lm_head.weight": np.zeros((61, 32), "f4")}),
        r'lm_head\.weight differs from .*"tie_word_embeddings": false',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_do_not_fit_are_named(saved, name):
    change, message = BAD[name]
    edit_tensors(saved, change)
    with pytest.raises(NeojaxError, match=message) as e:
        hf.load(saved)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_truncated_file_is_named(saved, size):
    file = saved / hf.WEIGHTS
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(NeojaxError, match=r"model\.safetensors is damaged or cut short"):
        hf.load(saved)


def test_a_garbled_header_is_named(saved):
    with open(saved / hf.WEIGHTS, "r+b") as f:
        f.seek(40)
        f.write(b"\xff" * 100)
    with pytest.raises(NeojaxError, match=r"model\.safetensors is damaged"):
        hf.load(saved)


def test_an_index_that_does_not_fit_its_files_is_named(tmp_path):
    hf.save(random_model(), tmp_path / "a", max_shard_size=60_000)
    shards = sorted((tmp_path / "a").glob("*.safetensors"))
    kept = shards[1].read_bytes()
    shutil.copy(shards[0], shards[1])
    with pytest.raises(NeojaxError, match=rf"index.json places \S+ in {shards[1].name}, but it is not there"):
        hf.load(tmp_path / "a")
    shards[1].unlink()
    with pytest.raises(NeojaxError, match=f"index.json names {shards[1].name}, which is not in"):
        hf.load(tmp_path / "a")
    shards[1].write_bytes(kept)
    hf.load(tmp_path / "a")


def test_a_directory_without_weights_is_named(saved):
    (saved / hf.WEIGHTS).unlink()
    with pytest.raises(NeojaxError, match=r"has no weights; expected model\.safetensors"):
        hf.load(saved)


@pytest.mark.parametrize(
    "layout, shard",
    [(("data:1",), 1 << 30), (("data:1",), 8 << 20), (SPLIT, 1 << 30)],
    ids=["one", "shards", "split"],
)
def test_loading_holds_no_more_than_the_largest_tensor_on_the_host(layout, shard, tmp_path):
    hf.save(random_model(n_layer=24, n_embd=192), tmp_path / "model", max_shard_size=shard)
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert (len(files) > 4) == (shard < 1 << 30)
    size = sum(file.stat().st_size for file in files)
    layout = layout_of(*layout)
    hf.load(tmp_path / "model", layout)  # what is compiled stays
    tracemalloc.start()
    hf.load(tmp_path / "model", layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = 4 * 4 * 192 * 192
    assert size > 40 * (1 << 20)
    assert peak < largest + (2 << 20)


def test_nothing_that_looks_finished_is_left_by_an_interrupted_save(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        hf.save(random_model(), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    hf.save(random_model(), tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_a_directory_in_use_is_not_overwritten(saved):
    before = (saved / hf.WEIGHTS).read_bytes()
    with pytest.raises(NeojaxError, match="exists already"):
        hf.save(random_model(), saved)
    assert (saved / hf.WEIGHTS).read_bytes() == before


def test_nothing_is_written_of_what_transformers_cannot_express(tmp_path):
    with pytest.raises(NeojaxError, match=r"model\.positions\.kind=rotary cannot be exported"):
        hf.save(random_model(rotary_emb=True), tmp_path / "out")
    assert not os.listdir(tmp_path)


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files."""
    with open("/proc/self/smaps_rollup") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith("Anonymous:"))


class TestTorchFiles:
    """pytorch_model.bin: read without running what is pickled in it."""

    @pytest.fixture
    def bin(self, saved):
        torch = pytest.importorskip("torch")
        tensors = {name: torch.tensor(t) for name, t in load_file(saved / hf.WEIGHTS).items()}
        expected = true_values(hf.load(saved))
        (saved / hf.WEIGHTS).unlink()
        return torch, saved, tensors, expected

    @pytest.mark.parametrize("zipped", [True, False])
    def test_weights_are_the_same(self, bin, zipped):
        torch, folder, tensors, expected = bin
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert_same(expected, true_values(hf.load(folder, layout_of(*SPLIT))))

    def test_shards_and_half_precision(self, bin):
        torch, folder, tensors, expected = bin
        names = sorted(tensors)
        places = {}
        for i, own in enumerate((names[::2], names[1::2])):
            torch.save({n: tensors[n].bfloat16() for n in own}, folder / f"part-{i}.bin")
            places |= dict.fromkeys(own, f"part-{i}.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        loaded = true_values(hf.load(folder))
        rounded = {n: v.astype(ml_dtypes.bfloat16).astype(np.float32) for n, v in expected.items()}
        assert_same(rounded, loaded)

    @pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
    @pytest.mark.parametrize("kind", ["float32", "bfloat16"])
    def test_reading_holds_no_more_than_the_largest_tensor(self, kind, tmp_path):
        """PyTorch's memory is out of sight of tracemalloc; mapped pages of the file are not anonymous
        memory."""
        torch = pytest.importorskip("torch")
        # In one storage of 40 MiB: smaller ones malloc keeps when they are freed, and would use again
        # unnoticed.
        whole = torch.ones(80 if kind == "bfloat16" else 40, 512, 512, dtype=getattr(torch, kind))
        torch.save({str(i): part for i, part in enumerate(whole)}, tmp_path / "pytorch_model.bin")
        del whole
        before = peak = anonymous_memory()
        files = open_tensors(tmp_path)
        for name, shape in files.shapes.items():
            part = files.read(name, tuple(slice(0, n) for n in shape))
            assert part.sum() == 512 * 512
            peak = max(peak, anonymous_memory())
        assert (tmp_path / "pytorch_model.bin").stat().st_size > 40 << 20
        assert peak - before < 4 * 512 * 512 + (4 << 20)

    def test_pickled_code_is_not_run(self, bin, tmp_path):
        torch, folder, tensors, _ = bin

        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        torch.save({**tensors, "trap": Trap()}, folder / "pytorch_model.bin")
        with pytest.raises(NeojaxError, match=r"pytorch_model\.bin holds pickled code besides tensors"):
            hf.load(folder)
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("size", [0, 1, 100, -1000])
    def test_a_truncated_file_is_named(self, bin, size):
        torch, folder, tensors, _ = bin
        file = folder / "pytorch_model.bin"
        torch.save(tensors, file)
        os.truncate(file, size if size >= 0 else file.stat().st_size + size)
        with pytest.raises(NeojaxError, match=r"pytorch_model\.bin is damaged or cut short"):
            hf.load(folder)

    def test_without_pytorch_the_way_out_is_named(self, saved, monkeypatch):
        (saved / hf.WEIGHTS).rename(saved / "pytorch_model.bin")
        monkeypatch.setitem(__import__("sys").modules, "torch", None)
        with pytest.raises(NeojaxError, match=r"needs PyTorch to be read: pip install neojax\[hf\]"):
            hf.load(saved)


def test_a_gpt_neox_is_read_under_every_name_that_its_tensors_have_had(tmp_path):
    """Without the prefix, with either name of the output table, and with buffers of old beside them."""
    model = noisy(model_config(family="gpt_neox", n_layer=2, n_embd=32, n_head=4, n_ctx=24, n_vocab=61))
    hf.save(model, tmp_path / "hf")
    file = tmp_path / "hf" / hf.WEIGHTS
    tensors = load_file(file)
    assert tensors["gpt_neox.layers.1.attention.query_key_value.weight"].shape == (96, 32)
    renamed = {name.removeprefix("gpt_neox."): value for name, value in tensors.items()}
    renamed["lm_head.weight"] = renamed.pop("embed_out.weight")
    renamed["layers.0.attention.bias"] = np.ones((1, 1, 24, 24), bool)
    renamed["layers.0.attention.rotary_emb.inv_freq"] = np.ones(4, "f4")
    save_file(renamed, file)
    for name, value in hf.load(tmp_path / "hf").params().items():
        np.testing.assert_array_equal(value, model.params()[name])
