"""PEFT's adapters give here what they give in PEFT, gradients too, on one device and on a split mesh; and
PEFT reads what is written here."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
import transformers
from hf_reference import albert, batch, bert, filled, gpt2, gpt_neo, gpt_neox, llama
from safetensors.numpy import load_file, save_file

import neojax
from neojax.cli import main
from neojax.config import MeshConfig
from neojax.convert import peft as files
from neojax.convert.tensor_files import Safetensors
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.loading import load_trained

MESH = MeshConfig("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
CASES = {
    "GPT-Neo": (
        lambda: gpt_neo([[["global", "local"], 1]]),
        {"target_modules": ["q_proj", "v_proj", "c_proj"]},
    ),
    "GPT-2": (lambda: gpt2(n_layer=2), {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "GPT-NeoX": (
        lambda: gpt_neox(num_hidden_layers=2),
        {"target_modules": ["query_key_value", "dense"], "use_rslora": True},
    ),
    "Llama": (lambda: llama(num_hidden_layers=1), {"target_modules": ["q_proj", "k_proj", "gate_proj"]}),
    "BERT": (
        lambda: bert(transformers.BertForMaskedLM, num_hidden_layers=2),
        {"target_modules": ["query", "value", "attention.output.dense"], "task_type": None},
    ),
    "ALBERT": (
        lambda: albert(transformers.AlbertForMaskedLM),
        {"target_modules": ["query", "ffn"], "task_type": None},
    ),
}


class Reference:
    """A model of transformers in a folder, an adapter of PEFT's in another, and both together in torch."""

    name = ""

    def __init__(self, folder: Path, make, **settings):
        base = make()
        self.base, self.adapter = folder / "base", folder / "adapter"
        base.save_pretrained(self.base)
        self.tokens = batch(base)
        settings = {"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", **settings}
        self.model = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        self.model.save_pretrained(self.adapter)
        written = json.loads((self.adapter / "adapter_config.json").read_text())
        written["base_model_name_or_path"] = str(self.base)
        (self.adapter / "adapter_config.json").write_text(json.dumps(written))

    def logits(self, model=None) -> np.ndarray:
        with torch.no_grad():
            return (model or self.model)(torch.from_numpy(self.tokens).long()).logits.numpy()

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the sum of negative log-likelihoods of the tokens that follow, by the names in adapter files."""
        self.model.zero_grad()
        logits = self.model(torch.from_numpy(self.tokens).long()).logits
        wanted = torch.from_numpy(self.targets()).long()
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum"
        ).backward()
        named = self.model.named_parameters()
        return {
            name.replace(".default", "").replace(".modules_to_save", ""): value.grad.numpy()
            for name, value in named
            if value.grad is not None
        }

    def targets(self) -> np.ndarray:
        return np.concatenate([self.tokens[:, 1:], np.full_like(self.tokens[:, :1], -1)], 1)


@pytest.fixture(scope="module", params=CASES)
def reference(request, tmp_path_factory):
    make, settings = CASES[request.param]
    made = Reference(tmp_path_factory.mktemp("peft"), make, **settings)
    made.name = request.param
    return made


def near(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


def test_an_adapter_gives_what_it_gives_in_peft(reference, tmp_path):
    expected = reference.logits()
    assert np.abs(expected - neojax.load(reference.base)(reference.tokens)).max() > 0.1
    near(neojax.load(reference.adapter)(reference.tokens), expected, 1e-5)
    if reference.name in ("GPT-NeoX", "BERT"):
        near(neojax.load(reference.adapter, mesh=MESH)(reference.tokens), expected, 1e-5)
    if reference.name in ("GPT-2", "ALBERT"):
        assert main(["convert", str(reference.adapter), str(tmp_path / "whole"), "--merge"]) == 0
        near(neojax.load(tmp_path / "whole")(reference.tokens), expected, 1e-5)


def test_gradients_are_those_of_peft_and_what_is_written_is_what_was_read(reference, tmp_path):
    model = load_trained(reference.adapter)
    params, frozen = model.params(), model.adapters.frozen
    files.save(model, tmp_path / "again", str(reference.base))
    written = load_file(tmp_path / "again" / "adapter_model.safetensors")
    before = load_file(reference.adapter / "adapter_model.safetensors")
    assert written.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)

    def objective(trained, frozen):
        rows = Batch(reference.tokens, reference.targets())
        return model.bind({**trained, **frozen}).loss(rows).objective

    kept = {name: value for name, value in params.items() if name in frozen}
    trained = {name: value for name, value in params.items() if name not in frozen}
    gradients = jax.jit(jax.grad(objective))(trained, kept)
    files.save(model.bind({**kept, **gradients}), tmp_path / "gradients")
    ours, theirs = load_file(tmp_path / "gradients" / "adapter_model.safetensors"), reference.gradients()
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        near(ours[name], gradient, 1e-4)


def test_peft_reads_what_is_written(reference, tmp_path):
    run = tmp_path / "run"
    assert main(["convert", str(reference.base), str(reference.adapter), str(run)]) == 0
    assert main(["convert", str(run), str(tmp_path / "back")]) == 0
    base = type(reference.model.get_base_model()).from_pretrained(reference.base, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|fan_in_fan_out).*")
        again = peft.PeftModel.from_pretrained(base, tmp_path / "back").eval()
    near(reference.logits(again), reference.logits(), 1e-6)
    if reference.name == "GPT-Neo":
        near(neojax.load(run)(reference.tokens), reference.logits(), 1e-5)


def test_ranks_alphas_and_layers_of_their_own_and_parameters_beside_additions(tmp_path):
    made = Reference(
        tmp_path,
        lambda: gpt_neo([[["global", "local"], 2]]),
        target_modules=["q_proj", "c_fc"],
        layers_to_transform=[0, 1, 3],
        rank_pattern={"c_fc": 2, "h.1.attn.attention.q_proj": 5},
        alpha_pattern={"c_fc": 7},
        modules_to_save=["ln_f"],
    )
    near(neojax.load(made.adapter)(made.tokens), made.logits(), 1e-5)
    model = load_trained(made.adapter)
    assert model.adapters.lora.rank == 5 and set(model.adapters.lora.whole) == {"norm_f.scale", "norm_f.bias"}
    files.save(model, tmp_path / "again", str(made.base))
    base = type(made.model.get_base_model()).from_pretrained(made.base, attn_implementation="eager")
    near(made.logits(peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()), made.logits(), 1e-5)


@pytest.mark.parametrize("family", ["BERT", "GPT-Neo"])
def test_the_head_of_a_task_goes_with_its_additions(family, tmp_path):
    cls = transformers.BertForSequenceClassification
    of_neo = transformers.GPTNeoForSequenceClassification

    def neo():
        config = gpt_neo([[["global"], 1]], num_labels=3, pad_token_id=0).config
        return filled(of_neo, config)

    make = neo if family == "GPT-Neo" else lambda: bert(cls, num_hidden_layers=1, num_labels=3)
    target = ["q_proj"] if family == "GPT-Neo" else ["query"]
    made = Reference(tmp_path, make, target_modules=target, task_type="SEQ_CLS")
    near(neojax.load(made.adapter)(made.tokens), made.logits(), 1e-5)
    model = load_trained(made.adapter)
    files.save(model, tmp_path / "again", str(made.base))
    written = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert written["task_type"] == "SEQ_CLS" and written["target_modules"] == target
    assert written["modules_to_save"] == ["score" if family == "GPT-Neo" else "classifier"]


def test_a_head_that_only_the_adapter_has_comes_with_it(tmp_path, monkeypatch):
    """As PEFT's users have it: a language model, and the adapter of a classifier that was made from it."""
    config = gpt_neo([[["global"], 1]], num_labels=3, pad_token_id=0).config
    make = lambda: filled(transformers.GPTNeoForSequenceClassification, config)  # noqa: E731
    made = Reference(tmp_path, make, target_modules=["q_proj"], task_type="SEQ_CLS")
    plain = transformers.GPTNeoForCausalLM(config)
    classifier = type(made.model.get_base_model()).from_pretrained(made.base)
    plain.transformer.load_state_dict(classifier.transformer.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    scanned: list[Path] = []
    scan = Safetensors.scan
    monkeypatch.setattr(Safetensors, "scan", lambda self, file: scanned.append(file) or scan(self, file))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = neojax.load(tmp_path / "plain", adapter=made.adapter)
    assert sum(file.parent == made.adapter for file in scanned) == 1  # it may be large, and far away
    assert found.config.head.kinds == ("sequence_classification",) and len(found.config.head.labels) == 3
    near(found(made.tokens), made.logits(), 1e-5)


@pytest.fixture(scope="module")
def neo(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("neo"), CASES["GPT-Neo"][0], target_modules=["q_proj"])


def spoilt(reference, folder, change=None, **keys):
    """A copy of an adapter with other tensors, as `change` makes them, or other settings."""
    folder.mkdir()
    settings = json.loads((reference.adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **keys}))
    tensors = load_file(reference.adapter / "adapter_model.safetensors")
    save_file(tensors if change is None else change(tensors), folder / "adapter_model.safetensors")
    return folder


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


FIRST = "base_model.model.transformer.h.0.attn.attention.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change, keys, message",
    [
        (
            renamed("h.1", "h.7"),
            {},
            r"holds .*h.7.*q_proj.* is not in the base .*base; is this the adapter of",
        ),
        (
            lambda t: {n: v[:, :-1] if n == FIRST else v for n, v in t.items()},
            {},
            r"h.0.attn.attention.q_proj.lora_A.weight has shape \[3, 23\], but for the base .* \[3, 24\]",
        ),
        (
            lambda t: {n: v for n, v in t.items() if n != FIRST},
            {},
            r"h.0.attn.attention.q_proj has no lora_A",
        ),
        (renamed("attn.attention.q_proj", "ln_1"), {}, r"h.\d.ln_1 is no matrix of a block"),
        (
            renamed("q_proj.lora_A", "q_proj.lora_magnitude"),
            {},
            r"lora_magnitude.*: neojax has additions to lin",
        ),
        (None, {"use_dora": True}, r"adapter_config.json: use_dora=True: neojax has no DoRA"),
        (None, {"peft_type": "IA3"}, r"peft_type='IA3'; neojax reads LORA"),
        (None, {"init_lora_weights": "pissa"}, r"init_lora_weights='pissa' changes the base"),
        (None, {"lora_alpha": "x"}, r"lora_alpha='x': expected a number"),
        (None, {"alpha_pattern": {"(": 1}}, r"alpha_pattern=.*expected patterns"),
        (
            None,
            {"base_model_name_or_path": "EleutherAI/gpt-neo-125m"},
            r"names the base 'EleutherAI/gpt-neo-1",
        ),
        (
            None,
            {"base_model_name_or_path": None},
            r"names no base; give the base yourself: neojax sample BASE",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line_that_names_the_tensor(neo, tmp_path, change, keys, message):
    with pytest.raises(NeojaxError, match=message) as error:
        neojax.load(spoilt(neo, tmp_path / "spoilt", change, **keys))
    assert "\n" not in str(error.value)


def test_sampling_takes_a_base_and_an_adapter(neo, tmp_path, capsys):
    nameless = spoilt(neo, tmp_path / "nameless", base_model_name_or_path=None)
    near(neojax.load(neo.base, adapter=nameless)(neo.tokens), neo.logits(), 1e-5)
    assert main(["sample", str(neo.base), "--adapter", str(tmp_path / "none"), "--prompt", "a"]) == 2
    assert "none does not exist; expected a folder of PEFT's" in capsys.readouterr().err
    assert main(["convert", str(neo.base), str(tmp_path / "run"), "--merge"]) == 2
    assert "--merge is for low-rank additions" in capsys.readouterr().err
