"""Pictures of layouts and plans: every chip is there, a bar is filled as far as a device has of a dimension,
and what is drawn is what is told elsewhere."""

import functools
import itertools
import math
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from helpers import failure

from neojax import config as configuration
from neojax.cli import main
from neojax.errors import NeojaxError
from neojax.layout.mesh import abstract_layout
from neojax.layout.names import DIMENSIONS
from neojax.models import Transformer
from neojax.plan import picture, picture_file
from neojax.plan.bars import draw_plan
from neojax.plan.machine import machine
from neojax.plan.picture_file import ZOOM, save_picture
from neojax.plan.report import gb
from neojax.plan.svg import Drawing

CONFIGS = Path(__file__).resolve().parents[2] / "meshconfigs"
SVG = "{http://www.w3.org/2000/svg}"


def drawn(text):
    """The words of a picture, and its rectangles as (width, height, fill)."""
    root = ElementTree.fromstring(text)
    words = [one.text or "" for one in root.iter(f"{SVG}text")]
    boxes = [
        (float(one.get("width")), float(one.get("height")), one.get("fill"))
        for one in root.iter(f"{SVG}rect")
        if "%" not in one.get("width")
    ]
    return words, boxes


def layout(*words):
    config = configuration.load(CONFIGS / "demo.yml", words)
    return config, abstract_layout(config.mesh)


@pytest.mark.parametrize("shape, sizes", [("data:4,model:2", (4, 2)), ("data:16,model:16", (16, 16))])
def test_every_chip_is_drawn_once_with_its_place(shape, sizes):
    config, own = layout(
        f"mesh.shape={shape}", "model.n_embd=256", "model.attention.heads=16", "train.batch_size=32"
    )
    words, boxes = drawn(picture.draw_layout(config, own, "here"))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            assert words.count(f"{i},{j}") == 1
    assert len(boxes) > 3 * sizes[0] * sizes[1]  # two stripes and a frame


def lines(text):
    """The lines of a picture: points and colour."""
    root = ElementTree.fromstring(text)
    return [
        ([tuple(map(float, point.split(","))) for point in one.get("points").split()], one.get("stroke"))
        for one in root.iter(f"{SVG}polyline")
    ]


@pytest.mark.parametrize("shape", ["data:256", "data:16,model:16"])
def test_lines_along_axes_are_no_long_diagonals_and_pass_by_the_numbers(shape):
    config, own = layout(
        f"mesh.shape={shape}",
        "mesh.layout=batch:data",
        "mesh.param_layout=",
        "train.batch_size=256",
    )
    text = picture.draw_layout(config, own, "here")
    axes = set(picture.axis_colours(own).values())
    along = [points for points, ink in lines(text) if ink in axes]
    assert along
    steps = [
        (abs(x1 - x0), abs(y1 - y0)) for points in along for (x0, y0), (x1, y1) in itertools.pairwise(points)
    ]
    assert all(min(step) < 1 for step in steps)
    root = ElementTree.fromstring(text)
    numbers = [one for one in root.iter(f"{SVG}text") if one.get("text-anchor") == "middle"]
    assert len(numbers) == 256
    for one in numbers:
        size = float(one.get("font-size"))
        x, y, half = float(one.get("x")), float(one.get("y")), 0.3 * size * len(one.text)
        for points in along:
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                outside = max(x0, x1) < x - half or min(x0, x1) > x + half
                assert outside or max(y0, y1) < y - 0.8 * size or min(y0, y1) > y


def test_axes_have_colours_that_no_dimension_has():
    _, own = layout()
    found = picture.axis_colours(own)
    assert len(set(found.values())) == len(found) == 2
    assert not set(found.values()) & {picture.colour(dim) for dim in DIMENSIONS}


def test_a_bar_is_filled_as_far_as_a_device_has_of_the_dimension():
    config, own = layout()
    words, boxes = drawn(picture.draw_layout(config, own, "here"))
    assert {"embd 128 over data", "mlp 512 over model", "batch 8 over data", "sequence 256"} <= set(words)
    filled = {
        dim: {
            round(w / picture.BAR * 8)
            for w, h, ink in boxes
            if h == picture.HIGH and ink == picture.colour(dim)
        }
        for dim in ("embd", "mlp", "batch", "sequence")
    }
    # Eighths; embd is used whole and stored in four parts.
    assert filled == {"embd": {2, 8}, "mlp": {4}, "batch": {2}, "sequence": {8}}


def test_the_parameters_that_are_drawn_are_all_that_a_device_stores():
    config, own = layout()
    model = Transformer(config.model, own)
    held = sum(4 * math.prod(v.sharding.shard_shape(v.shape)) for v in model.stored().values())
    assert sum(group.bytes for group in picture.parameters(model)) == held


def test_what_moves_is_drawn_by_the_axes_that_it_moves_over():
    config, own = layout("mesh.shape=slices:2,data:2,model:2", "mesh.layout=batch:slices+data,mlp:model")
    found = {(flow.kind, flow.axes): flow for flow in picture.flows_of(config, machine("h100:8"))}
    model = Transformer(config.model, own)
    split = sum(2 * math.prod(v.shape) for n, v in model.stored().items() if "embd" in model.dims()[n])
    gathered = sum(
        flow.bytes for (kind, axes), flow in found.items() if kind == "gather" and axes == ("data",)
    )
    assert 0.5 * split < gathered < 4 * split  # float32, forward and backward, parts over model
    words, _ = drawn(picture.draw_layout(config, own, "here", picture.flows_of(config, machine("h100:8"))))
    assert any("gather over data" in line for line in words) and any("over model" in line for line in words)


def test_inspect_writes_the_picture(tmp_path, capsys):
    path = tmp_path / "layout.svg"
    assert main(["inspect", str(CONFIGS / "demo.yml"), "--picture", str(path)]) == 0
    words, _ = drawn(path.read_text())
    assert words[0] == "demo" and "what one device holds" in words and "what moves in a step" in words
    capsys.readouterr()
    said = failure(capsys, "inspect", str(CONFIGS / "demo.yml"), "--picture", str(tmp_path / "layout.jpg"))
    assert "layout.jpg" in said and ".svg" in said


def test_a_plan_is_drawn_with_its_numbers():
    kinds = ("parameters", "optimizer", "batch", "gradients", "activations_kept", "temporaries", "unused")
    memory = {kind: (i + 1) * 1e9 for i, kind in enumerate(kinds)}
    memory |= {
        "available": 16e9,
        "needed": 28e9,
        "largest": [{"bytes": 5e9, "kind": "gradients", "holds": "of wte"}],
    }
    row = {"kind": "all-gather", "axes": "data", "types": "bf16", "crosses": False, "beside": True, "runs": 3}
    parts = {
        "products": 0.5,
        "attention": 0.1,
        "memory": 0.1,
        "links": 0.2,
        "links_alone": 0.0,
        "network": 0.0,
    }
    report = {"devices": 4, "device_kind": "TPU", "mesh": "data:4", "fits": False, "memory": memory}
    report |= {"collectives": [{**row, "bytes": 1e9}]}
    report |= {"estimate": {"seconds": 0.7, "low": 0.6, "high": 0.9, "bound": "products", "parts": parts}}
    words, boxes = drawn(draw_plan(report, "a plan"))
    text = " ".join(words)
    for said in (
        "12 GB too much",
        gb(5e9),
        "of wte",
        "all-gather over data",
        "products of matrices",
        "500 ms",
    ):
        assert said in text
    wide = [w for w, h, ink in boxes if h == 30 and ink != "none"]
    assert [w / sum(wide) for w in wide] == pytest.approx([(i + 1) / 28 for i in range(7)], abs=1e-3)
    large = {**report, "memory": {**memory, "available": 280e9}, "fits": True}
    _, boxes = drawn(draw_plan(large, "a plan"))
    wide = [w for w, h, ink in boxes if h == 30 and ink != "none"]
    room = next(w for w, h, ink in boxes if h == 30 and ink == "none")
    assert sum(wide) == pytest.approx(room / 10, abs=1)  # a tenth of what there is


def test_a_plan_of_gpus_is_drawn_as_bars(tmp_path):
    path = tmp_path / "plan.svg"
    words = ["--topology", "h200:8", "mesh.shape=data:-1", "mesh.layout=batch:data", "mesh.cpu_devices=0"]
    assert main(["plan", str(CONFIGS / "demo.yml"), *words, "--picture", str(path)]) == 0
    said = drawn(path.read_text())[0]
    assert said[0] == "demo on h200:8"
    assert {"memory of a device", "time of a step, estimated", "collectives of a step"} <= set(said)


def test_a_png_is_the_picture_in_twice_the_pixels_with_its_words(tmp_path, monkeypatch):
    resvg = pytest.importorskip("resvg_py")
    page = Drawing(300)
    page.rect(10, 10, 100, 50, "#2f6fb2")
    empty, path = str(page), tmp_path / "layout.png"
    page.text(20, 45, "embd")
    try:
        picture_file.check_picture(str(path))
    except NeojaxError:
        pytest.skip("no font is installed")
    pixels = []
    for svg in (empty, str(page)):
        save_picture(str(path), svg)
        data = path.read_bytes()
        pixels.append(data)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (300 * ZOOM, round(page.height + 20) * ZOOM)
    assert pixels[0] != pixels[1]
    monkeypatch.setattr(resvg, "svg_to_bytes", functools.partial(resvg.svg_to_bytes, skip_system_fonts=True))
    with pytest.raises(NeojaxError, match="none of the fonts"):
        picture_file.check_picture(str(path))


def test_a_png_without_its_package_is_one_line_before_there_is_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    said = failure(capsys, "inspect", str(CONFIGS / "demo.yml"), "--picture", str(tmp_path / "layout.png"))
    assert "pip install 'neojax[pictures]'" in said
