"""benchmarks/communication.py: what it reads in a compiled program, and its model of the links against worked
figures."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import links
from communication_rows import ROWS
from hlo import Collective, collectives, replica_groups

PROGRAM = """HloModule step, num_partitions=8

%condition.1 (p: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%written.1 (a: bf16[1,4]) -> bf16[8,4] {
  ROOT %filled = bf16[8,4]{1,0} dynamic-update-slice(%zeros, %a, %n, %zero)
}

%async_collective_fusion.1 (p: bf16[8]) -> bf16[64] {
  %all-gather.2 = bf16[64]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.2 (p: bf16[8]) -> bf16[64] {
  %all-gather.3 = bf16[64]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {
  %all-reduce.3 = f32[64]{0} all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%body.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %all-reduce.1 = f32[8,4]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %part = bf16[8,4]{1,0} fusion(%a, %n), kind=kLoop, calls=%written.1
  %all-reduce.2 = (bf16[8,4]{1,0}, f32[4]{0}) all-reduce(%part, %b), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %early = (bf16[64], u32[]) fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %late = (bf16[64], u32[]) fusion(%p), kind=kCustom, calls=%async_collective_fusion.2
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%condition.1, body=%body.1
  %scattered = f32[8]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %send.1 = (f32[40,8]{1,0}, u32[], token[]) send(%s, %after), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""  # noqa: E501


def test_what_a_program_holds():
    found = {(one.kind, one.bytes): one for one in collectives(PROGRAM)}
    assert {key: one.times for key, one in found.items()} == {
        ("all-reduce", 128): 12,
        ("all-reduce", 80): 12,
        ("all-gather", 128): 12,
        ("reduce-scatter", 256): 1,
        ("transfer", 1280): 1,
    }
    assert [key for key, one in found.items() if one.is_gather] == [("all-reduce", 80)]
    assert [key for key, one in found.items() if one.beside] == [("all-gather", 128)]
    assert found["all-reduce", 128].groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert found["transfer", 1280].operation == "ALL_REDUCE"


@pytest.mark.parametrize(
    "written, groups",
    [
        ("replica_groups={{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_every_form_of_groups(written, groups):
    assert replica_groups(f"%x = f32[4] all-gather(%p), {written}, dimensions={{0}}", 4) == groups


def line(n, axis=0, stride=1):
    return [tuple(i * stride if a == axis else 0 for a in range(3)) for i in range(n)]


def test_the_model_of_the_links_against_worked_figures():
    """The scaling book: bf16[2048, 8192] over four v5e chips, 560 us without and 377 us with a ring; V / W n
    over axes."""
    v5e = links.CHIPS["v5e"]
    gather = Collective("all-gather", (("bf16", (2048, 8192)),), (), rings=1)
    assert links.seconds(gather, line(4), (4, 4, 1), v5e) == pytest.approx(560e-6, rel=0.01)
    whole = gather.bytes / 90e9
    assert links.seconds(gather, line(16), (16, 16, 1), v5e) == pytest.approx(whole * 15 / 16 + 8e-6)
    everything = [(x, y, 0) for x in range(16) for y in range(16)]
    total = Collective("all-reduce", gather.arrays, (), rings=2)
    assert links.seconds(total, everything, (16, 16, 1), v5e) == pytest.approx(whole * 255 / 256 + 32e-6)
    every_fourth = links.seconds(gather, line(4, stride=4), (16, 16, 1), v5e)
    assert every_fourth == pytest.approx(4 * whole * 3 / 4 + 8e-6)  # four groups share the links of the ring
    sent = Collective("transfer", (("f32", (1 << 20,)),), ())
    assert links.seconds(sent, [], (8, 8, 1), v5e) == pytest.approx(4 * 2**20 / 3.125e9)


def test_rows_name_their_slice_and_model():
    assert len(ROWS) == len(set(ROWS)) > 40
    for name, row in ROWS.items():
        assert name.split(" ")[0] in ("v5e-256", "v5p-128", "v6e-256", "2") and row["model"] in name
