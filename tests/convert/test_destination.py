"""What `neojax convert` writes to: nothing of anybody's is overwritten, nothing is half written or left
behind."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from helpers import tiny
from old_configs import PATTERNS

from neojax import cli
from neojax.convert import hf, tensor_files
from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.files import new_file, new_folder
from neojax.lock import Lock
from neojax.models import Transformer


def convert(*words):
    return cli.main(["convert", *map(str, words)])


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def model():
    model = Transformer(tiny(n_vocab=300)).init(3)
    model.tokenizer = tokenizers.train(["to be or not to be"] * 5, 270)
    model.eos_token_id = 0
    return model


@pytest.fixture
def folder(model, tmp_path):
    """A Hugging Face directory."""
    hf.save(model, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(PATTERNS))
    return path


def test_what_exists_is_kept_unless_forced(folder, config, tmp_path, capsys):
    (tmp_path / "mine.yml").write_text("mine")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for source, dest in ((config, "mine.yml"), (folder, "mine.yml"), (folder, "used")):
        assert convert(source, tmp_path / dest) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and f"{dest} exists already" in err and "--force" in err
    for source, dest in ((folder, "mine.yml"), (folder, "used"), (config, "used")):  # not even then
        assert convert(source, tmp_path / dest, "--force") == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(tmp_path) == before
    assert convert(config, tmp_path / "mine.yml", "--force") == 0
    assert (tmp_path / "mine.yml").read_text().startswith("# From old.json")


def test_a_forced_directory_takes_the_place_of_another(folder, tmp_path, capsys):
    assert convert(folder, tmp_path / "run") == 0
    (tmp_path / "run" / "metrics.jsonl").write_text("old")
    with Lock(tmp_path / "run", "trained"):
        other = [sys.executable, "-m", "neojax", "convert", str(folder), str(tmp_path / "run"), "--force"]
        result = subprocess.run(other, capture_output=True, text=True)
        assert result.returncode == 2 and "run is being trained by process" in result.stderr
    assert convert(folder, tmp_path / "run", "--force") == 0
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and (tmp_path / "run" / "config.yml").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "run"]


def test_the_source_is_never_written_to_by_whatever_name(folder, config, tmp_path, monkeypatch, capsys):
    (tmp_path / "link.json").symlink_to(config)
    (tmp_path / "alias").symlink_to(folder)
    (tmp_path / "above").symlink_to(tmp_path)
    before = contents(tmp_path)
    monkeypatch.chdir(folder)
    pairs = [
        (config, config),
        (config, tmp_path / "link.json"),
        (tmp_path / "link.json", config),
        (config, "../old.json"),
        ("../old.json", tmp_path / "above" / "old.json"),
        (config, tmp_path),
        (folder, folder),
        (folder, "."),
        (tmp_path / "alias", folder),
        (folder, tmp_path / "above" / "alias"),
        (folder, tmp_path),
        (folder, "config.json"),
        (folder, folder / "model.safetensors"),
    ]
    for source, dest in pairs:
        for force in ([], ["--force"]):
            assert convert(source, dest, *force) == 2, (source, dest)
            assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_checkpoint_and_its_config_are_never_written_to(tmp_path, capsys):
    here = os.path.join(os.path.dirname(__file__), "data", "mesh_tf")
    for dest in (here, f"{here}/model.ckpt-1234.index", f"{here}/config.json"):
        assert convert(here, dest, "--force") == 2
        assert convert(f"{here}/model.ckpt-1234", dest, "--force") == 2
        assert "which is converted" in capsys.readouterr().err
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    assert convert(here, mine, "--config", mine, "--force") == 2
    assert "which is converted" in capsys.readouterr().err and mine.read_text() == "{}"


@pytest.mark.parametrize("how", ["full", "interrupted", "terminated"])
def test_an_end_half_way_leaves_what_was_there_and_nothing_else(folder, tmp_path, monkeypatch, how, capsys):
    assert convert(folder, tmp_path / "run") == 0
    assert convert(tmp_path / "run", tmp_path / "back") == 0
    before = contents(tmp_path)
    capsys.readouterr()

    def fail(*_):
        if how == "full":
            raise OSError(28, "No space left on device")
        if how == "interrupted":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(hf, "_write_weights", fail)
    for dest in ("back", "made/new"):
        if how == "terminated":
            with pytest.raises(SystemExit) as e:
                convert(tmp_path / "run", tmp_path / dest, "--force")
            assert e.value.code == 143
        else:
            status = convert(tmp_path / "run", tmp_path / dest, "--force")
            assert status == {"full": 2, "interrupted": 130}[how]
            assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "hf", "run"]


def test_files_have_the_mode_that_the_umask_asks_for(model, tmp_path):
    former = os.umask(0o027)
    try:
        hf.save(model, tmp_path / "hf", max_shard_size=20_000)
        assert convert(tmp_path / "hf", tmp_path / "run") == 0
    finally:
        os.umask(former)
    for folder in ("hf", "run"):
        files = [p for p in (tmp_path / folder).iterdir() if p.is_file()]
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in files}
        assert set(modes.values()) == {0o640}, modes
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o750


def test_a_place_that_cannot_be_written_is_one_line(folder, config, tmp_path, capsys):
    (tmp_path / "file").touch()
    for source in (folder, config):
        for dest in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
            assert convert(source, dest) == 2
            err = capsys.readouterr().err
            assert len(err.splitlines()) == 1 and "Traceback" not in err
    assert convert(config, folder) == 2
    assert "is a folder; name the file to write" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "hf", "old.json"]


def test_a_whole_file_or_folder_replaces_only_when_asked(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(NeojaxError, match="exists already"), new_file(tmp_path / "a"):
        raise AssertionError("the block is not entered")
    with pytest.raises(NeojaxError, match="exists already"), new_folder(tmp_path / "a"):
        raise AssertionError("the block is not entered")
    (tmp_path / "link").symlink_to("a")
    with new_file(tmp_path / "link", replace=True) as file:
        file.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "link").is_symlink()
    with new_folder(tmp_path / "b" / "c") as folder:
        (folder / "d").touch()
    assert (tmp_path / "b" / "c" / "d").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "link"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_on_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "neojax", "inspect", "--keys"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert result.stderr == "error: cannot write the output: No space left on device\n"


def test_a_source_is_converted_from_within_and_an_empty_name_is_one_line(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    assert convert(".", "../run") == 0
    assert (tmp_path / "run" / "config.yml").is_file()
    capsys.readouterr()
    for words, name in ((["", "../other"], "SOURCE"), ([".", ""], "DEST")):
        assert convert(*words) == 2
        assert capsys.readouterr().err.startswith(f"error: {name} is an empty text")
    assert convert("/", "../other") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", tensor_files.FILES)
def test_weights_that_may_not_be_read_are_not_called_damaged(folder, name, tmp_path, monkeypatch, capsys):
    (folder / "model.safetensors").rename(folder / name)

    def denied(file, *_):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(tensor_files, "open", denied, raising=False)
    assert convert(folder, tmp_path / "run") == 2
    assert capsys.readouterr().err == f"error: cannot read {folder / name}: Permission denied\n"
