"""What is read in an optimised program: every collective once, its groups, its runs, what runs beside it."""

import pytest

from neojax.plan.hlo import collectives, replica_groups

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

%fused_computation.1 (p: bf16[4]) -> bf16[32] {
  %all-gather.4 = bf16[32]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%fused_computation.2 (p: bf16[4]) -> bf16[32] {
  %all-gather.5 = bf16[32]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%fused_computation.3 (p: bf16[4]) -> bf16[32] {
  %all-gather.6 = bf16[32]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%condition.1, body=%body.1
  %scattered = f32[8]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %async-collective-start.1 = (bf16[32]) fusion(%p), kind=kCustom, calls=%fused_computation.1
  %async-collective-start.2 = (bf16[32]) fusion(%q), kind=kCustom, calls=%fused_computation.2
  %async-collective-done.1 = (bf16[32]) fusion(%p), kind=kCustom, calls=%fused_computation.3
  %send.1 = (f32[40,8]{1,0}, u32[], token[]) send(%s, %after), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""  # noqa: E501


def test_what_a_program_holds():
    found = {(one.kind, one.bytes): one for one in collectives(PROGRAM)}
    gathers = [one for one in collectives(PROGRAM) if one.kind == "all-gather"]
    assert sum(one.bytes == 64 for one in gathers) == 2  # of one channel, each with its start
    assert {key: one.times for key, one in found.items()} == {
        ("all-reduce", 128): 12,
        ("all-reduce", 64): 12,
        ("all-reduce", 16): 12,
        ("all-gather", 128): 12,
        ("all-gather", 64): 1,
        ("reduce-scatter", 256): 1,
        ("transfer", 1280): 1,
    }
    # Of two arrays that are summed at once, the one that is written into zeros alone is gathered.
    assert [key for key, one in found.items() if one.is_gather] == [("all-reduce", 64)]
    assert [key for key, one in found.items() if one.beside] == [("all-gather", 64), ("all-gather", 128)]
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
