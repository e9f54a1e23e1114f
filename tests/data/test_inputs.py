"""Which files inputs mean: every one that can be reached, once, and a word about every one that cannot be
read."""

import os
import subprocess
import sys

import pytest

from neojax import cli
from neojax.data.inputs import expand
from neojax.data.prepare import prepare
from neojax.errors import NeojaxError
from neojax.lock import Lock


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(*inputs):
    files, skipped = expand(inputs)
    return [f.name for f in files], {os.path.basename(skip.where): skip.reason for skip in skipped}


def test_links_are_followed_once_each_and_end(tmp_path):
    write(tmp_path, "in/1.txt", "in/sub/2.txt", "away/3.txt", "away/deep/4.txt")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "away")
    (tmp_path / "in" / "zlink").symlink_to(tmp_path / "away" / "deep")  # the same files again
    (tmp_path / "in" / "5.txt").symlink_to("../away/3.txt")
    (tmp_path / "away" / "deep" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "sub" / "here").symlink_to(".")
    (tmp_path / "in" / "around").symlink_to("around")
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "gone")
    found, skipped = names(tmp_path / "in")
    assert found == ["1.txt", "5.txt", "4.txt", "2.txt"]  # 3.txt, first met as 5.txt
    assert skipped == dict.fromkeys(("around", "nowhere"), "is a link that leads nowhere")
    assert names(tmp_path / "in", tmp_path / "away", tmp_path / "in" / "sub")[0] == found
    assert names(tmp_path / "in" / "zlink", tmp_path / "in")[0] == ["4.txt", "1.txt", "5.txt", "2.txt"]


def test_a_glob_means_what_a_shell_would_make_of_it_and_ends_where_links_lead_around(tmp_path, monkeypatch):
    write(tmp_path, "in/1.txt", "in/sub/2.txt", "in/sub/deep/3.txt", "in/[x]/4.txt")
    (tmp_path / "in" / "nowhere").symlink_to("gone")
    assert names(tmp_path / "in" / "*")[1] == {"nowhere": "is a link that leads nowhere"}
    assert sorted(names(tmp_path / "in" / "*")[0]) == ["1.txt", "2.txt", "3.txt", "4.txt"]
    # Two links upwards: there are 2^40 ways to the same files.
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    (tmp_path / "in" / "sub" / "deep" / "up").symlink_to("..")
    (tmp_path / "in" / "[x]" / "up").symlink_to("..")
    found = ["1.txt", "4.txt", "2.txt", "3.txt"]
    assert names(tmp_path / "in" / "**" / "*.txt")[0] == found
    assert names(tmp_path / "**" / "in" / "**" / "[1-3].txt")[0] == ["1.txt", "2.txt", "3.txt"]
    assert sorted(names(tmp_path / "in" / "**")[0]) == sorted(found)
    monkeypatch.chdir(tmp_path / "in")
    assert names("**/*.txt")[0] == found
    with pytest.raises(NeojaxError, match=r"in/\*\*/\*.md' holds no files"):
        expand([tmp_path / "in" / "**" / "*.md"])


@pytest.fixture
def locked(monkeypatch):
    """Folders of the name "locked" cannot be looked into, by root either."""
    own = os.listdir

    def listdir(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(os, "listdir", listdir)


def test_what_a_glob_cannot_look_into_is_told(tmp_path, locked):
    write(tmp_path, "in/1.txt", "in/locked/2.txt")
    for pattern in ("**/*.txt", "**", "*"):
        assert names(tmp_path / "in" / pattern) == (
            ["1.txt"],
            {"locked": "cannot be read: Permission denied"},
        )


@pytest.mark.parametrize("bad", ["", "a\0b", "x" * 300])
def test_an_input_that_is_no_name_is_one_line(tmp_path, bad, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "1.txt")  # the folder one is in is not what an unset variable means
    with pytest.raises(NeojaxError, match="input"):
        expand([bad])


def test_inputs_that_lie_in_the_output_are_told(tmp_path, byte_tokenizer):
    write(tmp_path, "in/1.txt", "in/out/2.txt")
    counts = prepare([tmp_path / "in"], tmp_path / "in" / "out", tokenizer=byte_tokenizer, validation=0)
    assert counts.documents == 1 and counts.skipped == {"lies in --out": 1}
    assert counts.first_skipped == {"lies in --out": str(tmp_path / "in" / "out" / "2.txt")}


def test_a_file_counts_once_by_whatever_name_it_is_given(tmp_path, monkeypatch):
    write(tmp_path, "in/1.txt", "in/2.txt")
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path / "in")
    given = [
        "1.txt",
        tmp_path / "in" / "1.txt",
        "../in/./1.txt",
        tmp_path / "link" / "1.txt",
        "../link/*.txt",
    ]
    assert names(*given, ".", tmp_path / "link")[0] == ["1.txt", "2.txt"]
    os.link("2.txt", "3.txt")
    assert names(".")[0] == ["1.txt", "2.txt"]


def test_what_cannot_be_read_is_told_and_the_rest_is_read(tmp_path, byte_tokenizer, locked, capsys):
    write(tmp_path, "in/1.txt", "in/locked/2.txt", "in/3.txt")
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / os.fsdecode(b"\xff.bin")).write_bytes(b"\0")
    assert names(tmp_path / "in")[1] == {
        "locked": "cannot be read: Permission denied",
        "pipe": "is no regular file",
    }
    with pytest.raises(NeojaxError, match=r"locked' holds no files \(.*Permission denied\)"):
        expand([tmp_path / "in" / "locked"])
    with pytest.raises(NeojaxError, match="pipe' is neither a file nor a folder"):
        expand([tmp_path / "in" / "pipe"])
    words = [
        "prepare",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
        "--tokenizer",
        str(byte_tokenizer),
    ]
    assert cli.main([*words, "--validation", "0"]) == 0
    printed = capsys.readouterr().out
    assert "2 documents" in printed and "1 cannot be read: Permission denied (the first: " in printed
    assert "\\udcff.bin" in printed


def test_without_held_out_documents_none_are_advised(tmp_path, byte_tokenizer, capsys):
    write(tmp_path, "1.txt")
    words = ["prepare", str(tmp_path / "1.txt"), "--tokenizer", str(byte_tokenizer), "--out"]
    assert cli.main([*words, str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "no document fell into validation" in printed and "data.validation=" not in printed
    write(tmp_path, "2.txt", "3.txt", "4.txt", "5.txt", "6.txt")
    words[1:2] = [str(tmp_path / f"{i}.txt") for i in range(1, 7)]
    assert cli.main([*words, str(tmp_path / "both"), "--validation", "0.5"]) == 0
    assert f"data.validation={tmp_path / 'both'}" in capsys.readouterr().out


def test_one_run_at_a_time_writes_a_folder(tmp_path, byte_tokenizer):
    write(tmp_path, "1.txt")
    out = tmp_path / "out"
    with Lock(out):
        words = ["prepare", str(tmp_path / "1.txt"), "--out", str(out), "--tokenizer", str(byte_tokenizer)]
        other = [sys.executable, "-m", "neojax", *words, "--validation", "0", "--force"]
        result = subprocess.run(other, capture_output=True, text=True)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
        assert f"{out} is being written by process {os.getpid()}" in result.stderr
        assert [p.name for p in out.iterdir()] == ["lock"]
    prepare([tmp_path / "1.txt"], out, tokenizer=byte_tokenizer, validation=0)
    assert not (out / "lock").exists() and (out / "prepared.json").is_file()
