"""The command line: answers without JAX, and one `error:` line with status 2 for whatever the user can
mend."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import write_data

from neojax import __version__
from neojax.cli import COMMANDS, guarded, main
from neojax.output import json_line

ROOT = Path(__file__).resolve().parent.parent

CONFIG = """
model: {n_layer: 2, n_embd: 16, n_head: 2, n_ctx: 16, n_vocab: 61, window_size: 4}
mesh: {cpu_devices: 8, shape: "data:4, model:2", layout: "batch:data, heads:model"}
data: {train: DATA}
train: {run_dir: RUN, steps: 2, warmup_steps: 0, tensorboard: false}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder)
    path = folder / "c.yml"
    path.write_text(CONFIG.replace("DATA", str(folder)).replace("RUN", str(folder / "run")))
    return path


def neojax(*args, **kwargs):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True, **kwargs
    )


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"]])
def test_answers_without_jax(args):
    """Importing it is most of a start; how long an answer takes is measured in benchmarks/waits.py."""
    code = (
        f"import sys; from neojax.cli import main\ntry: main({args!r})\nfinally: assert 'jax' not in "
        f"sys.modules"
    )
    result = neojax("-c", code)
    assert result.returncode == 0, result.stderr
    expected = {"--help": list(COMMANDS), "--version": [__version__], "train": ["CONFIG.yml"]}
    for word in expected.get(args[0], ["model.n_layer", "train.run_dir"]):
        assert word in result.stdout


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["COMMAND"]),
        (["trian"], ["trian", "train"]),
        (["train"], ["CONFIG.yml"]),
        (["train", "absent.yml"], ["absent.yml"]),
        (["train", "CONFIG", "--frob"], ["--frob", "(see neojax train --help)"]),
        (["train", "CONFIG", "train.stepps=1"], ["train.stepps", "did you mean train.steps"]),
        (["train", "CONFIG", "train.run_dir="], ["train.run_dir"]),
        (["train", "CONFIG", "data.train="], ["data.train"]),
        (["train", "CONFIG", "data.train=/nowhere"], ["/nowhere"]),
        (["train", "CONFIG", "mesh.shape=data:64"], ["mesh.shape", "64", "8"]),
        (["train", "CONFIG", "train.batch_size=6"], ["batch", "size 6"]),
        (["train", "CONFIG", "mesh.layout=vocab:data, batch:data"], ["batch", "vocab", "axis data"]),
        (["train", "CONFIG", "model.n_vocab=30"], ["model.n_vocab=30"]),
        (["inspect"], ["configuration"]),
        (["inspect", "CONFIG", "mesh.layout=mlp:modle"], ["did you mean model"]),
    ],
)
def test_mistakes_are_one_line(args, words, config, capsys):
    try:
        status = main([str(config) if a == "CONFIG" else a for a in args])
    except SystemExit as e:  # argparse
        status = e.code
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert not (config.parent / "run").exists()


def test_train_py_prints_one_line_and_exits_with_2(config):
    result = neojax("train.py", str(config), "train.batch_size=6")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_leaving_early_is_no_traceback(error, status):
    code = f"from neojax.cli import guarded\ndef f(): raise {error.__name__}\nraise SystemExit(guarded(f))"
    result = neojax("-c", code)
    assert result.returncode == status and "Traceback" not in result.stderr


@pytest.mark.parametrize("streams", ["0<&-", "1>&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_written_with_a_stream_closed_is_whole_and_no_traceback(streams, config):
    """The number of a closed stream is nobody's: not that of a file which is written, with a library's
    messages in it."""
    code = (
        "import os, sys; from neojax.cli import guarded\n"
        f"def f():\n with open({str(config.parent / 'file')!r}, 'wb') as f:\n"
        "  [os.write(fd, b'message') for fd in (1, 2)]; print('out'); print('err', file=sys.stderr); "
        "f.write(b'data')\n"
        "raise SystemExit(guarded(f))"
    )
    command = f'exec "$0" -c "$1" {streams}'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable, code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr
    assert (config.parent / "file").read_bytes() == b"data"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_error_that_cannot_be_told_keeps_its_status():
    code = (
        "from neojax.cli import guarded\nfrom neojax.errors import NeojaxError\ndef f(): raise "
        "NeojaxError('x')\n"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", f"{code}raise SystemExit(guarded(f))"]
        assert subprocess.run(command, cwd=ROOT, stderr=full).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["--help"], ["--version"], ["prepare", "--help"]])
def test_an_answer_that_cannot_be_written_is_one_line(args):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "neojax", *args], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full and a shell")
def test_streams_that_are_closed_or_full_change_no_exit_status():
    def shell(line):
        return subprocess.run(["sh", "-c", line, sys.executable], cwd=ROOT, capture_output=True, text=True)

    done = shell('"$0" -m neojax --version >&- <&-')
    assert (done.returncode, done.stderr) == (0, "")
    for stderr in ("/dev/full", "&-"):
        assert shell(f'"$0" -m neojax train absent.yml 2>{stderr}').returncode == 2
        assert shell(f'"$0" -m neojax trian 2>{stderr}').returncode == 2


def test_what_the_output_cannot_hold_is_escaped():
    code = (
        "from neojax.output import own_streams, json_line as j; own_streams(); print('é😀\\udcff'); "
        "print(j('é😀'))"
    )
    for encoding, expected in [
        ("utf-8", ["é😀\\udcff", '"é😀"']),
        ("ascii", ["\\xe9\\U0001f600\\udcff", '"\\u00e9\\ud83d\\ude00"']),
    ]:
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
        assert done.stdout.decode(encoding).splitlines() == expected, done.stderr


def test_a_line_of_json_is_one_line_for_every_reader():
    value = {"text": "".join(map(chr, range(0x2100))) + "😀"}
    line = json_line(value)
    assert len(line.splitlines()) == 1 and json.loads(line) == value and "é" in line


def test_a_bug_is_a_traceback():
    """Only what the user can mend is made into a line."""

    def bug():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        guarded(bug)


def test_a_program_that_calls_the_command_as_a_library_runs_once(tmp_path):
    program = (
        "import sys; from neojax.cli import entry; print('begins'); sys.argv[1:] = ['train', 'absent.yml']\n"
    )
    (tmp_path / "train.py").write_text(
        f"{program}assert entry() == entry(['train', 'absent.yml']) == 2; print('ends')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("GLIBC_TUNABLES", None)
    done = subprocess.run([sys.executable, tmp_path / "train.py"], env=env, capture_output=True, text=True)
    assert done.stdout == "begins\nends\n"


def test_the_package_has_its_configuration_as_an_attribute_and_its_types():
    code = "import neojax, sys; neojax.config.MeshConfig(); assert 'jax' not in sys.modules"
    assert neojax("-c", code).returncode == 0
    assert (ROOT / "neojax" / "py.typed").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
@pytest.mark.parametrize(
    "command", [["train.py"], ["-m", "neojax", "train"]], ids=["train.py", "neojax train"]
)
def test_training_starts_anew_with_huge_pages_and_the_same_arguments(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for own in ("", "glibc.malloc.check=0"):
        env.pop("GLIBC_TUNABLES", None)
        env.update({"GLIBC_TUNABLES": own} if own else {})
        done = subprocess.run(
            [sys.executable, *command, "absent.yml"], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert (done.returncode, "absent.yml" in done.stderr) == (2, True)
        starts = done.stdout.split("\n")[:-1]
        tunables = [line.split()[1] for line in starts]
        assert tunables == ([own] if own else ["None", "glibc.malloc.hugetlb=1"])
        assert len({line.split()[0] for line in starts}) == 1, "the process id stays"


def test_a_warning_is_one_line(capsys):
    assert guarded(lambda: warnings.warn("mesh.shape splits an axis", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: mesh.shape splits an axis\n"


def test_a_forgotten_configuration_is_asked_for(capsys):
    assert main(["train", "data.train=data", "train.steps=1"]) == 2
    assert "data.train=data stands where the configuration should" in capsys.readouterr().err
