"""What is decided about memory, and that a plan is read back as it was written."""

import json
from dataclasses import replace

import pytest

from edgeladder.budget import policy
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan

MB = 1_000_000
BASELINE = MachineBaseline(9 * MB, 58 * MB, 30 * MB, 6 * MB, 2 * MB, 33 * MB, 90 * MB)
PLAN = Plan(
    budget_bytes=300 * MB,
    minimum_budget_bytes=150 * MB,
    fits=True,
    phases={
        "precompute": PhasePlan(100 * MB, batch=8, whole=True, max_pixels=2, disk_bytes=7),
        "train": PhasePlan(90 * MB, batch=32, mode="fused", arena=True, moments="int8"),
        "evaluate": PhasePlan(80 * MB, chunk=64, head_pictures=600, parts={"head": 5}),
    },
    classes=100,
    pictures=1600,
    baseline=BASELINE,
    least={"train": 60 * MB},
    head="kernel",
)


def test_a_plan_is_read_back_as_it_was_written():
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def test_a_worker_is_told_sizes_alone():
    told = PLAN.phases["train"].sizes()
    assert told == {"batch": 32, "mode": "fused", "arena": True}
    assert PLAN.phases["precompute"].sizes() == {"batch": 8, "whole": True, "max_pixels": 2}


def shrunk(phase, times, sizes=None):
    sizes = sizes or PLAN.phases[phase]
    for _ in range(times):
        sizes = policy.shrink(PLAN, phase, sizes)
    return sizes


def test_a_whole_tower_is_cut_into_segments_first_and_halved_then():
    assert (shrunk("precompute", 1).whole, shrunk("precompute", 1).group) == (False, policy.GROUP)
    assert (shrunk("precompute", 2).batch, shrunk("precompute", 2).group) == (4, 64)
    assert (shrunk("precompute", 20).batch, shrunk("precompute", 20).group) == (1, 1)
    predict = shrunk("predict", 1, PhasePlan(whole=True, batch=4))
    assert (predict.whole, predict.batch, predict.group) == (False, 4, policy.PREDICT_GROUP)


def test_a_step_is_chunked_holds_nothing_and_keeps_its_batch():
    once = shrunk("train", 1)
    assert (once.mode, once.chunk, once.batch, once.careful) == ("chunked", 50, 32, True)
    assert (once.arena, once.hold_bytes, once.keep_bytes, once.class_chunk) == (False, 0, 0, None)
    assert shrunk("train", 2).chunk == 25 and shrunk("train", 20).chunk == 1
    held = PhasePlan(mode="chunked", chunk=16, class_chunk=40, hold_bytes=9)
    assert shrunk("train", 1, held).chunk == 8 and shrunk("train", 1, held).hold_bytes == 0


def test_a_kernel_head_is_fitted_on_fewer_pictures_as_long_as_every_class_has_two():
    assert (shrunk("evaluate", 1).chunk, shrunk("evaluate", 1).head_pictures) == (32, 300)
    assert (shrunk("evaluate", 9).chunk, shrunk("evaluate", 9).head_pictures) == (1, 300)
    gda = policy.shrink(replace(PLAN, head="gda"), "evaluate", PLAN.phases["evaluate"])
    assert gda.head_pictures == 600
    none = policy.shrink(replace(PLAN, head="none"), "evaluate", PhasePlan(chunk=64))
    assert none.head_pictures is None and "head_pictures" not in none.sizes()


def test_a_phase_of_ones_own_is_left_as_it_is():
    own = PhasePlan(batch=3)
    assert policy.shrink(PLAN, "module:function", own) == own


@pytest.mark.parametrize(("device", "expected"), [(4_000 * MB, 4_000 * MB), (None, 800 * MB)])
def test_the_default_budget_is_the_devices_or_a_share_of_what_is_available(device, expected):
    assert policy.default_budget(device, 1_000 * MB) == expected


def test_the_waiting_process_is_planned_with_room_to_grow():
    assert policy.planned_supervisor(13 * MB) == policy.planned_supervisor(12_500_000) == 14 * MB
    assert policy.planned_supervisor(14 * MB) == 16 * MB, "no room to grow"


def test_the_workers_limit_leaves_room_for_the_supervisor():
    assert policy.worker_limit(100 * MB, supervisor_bytes=12 * MB, file_bytes=30 * MB) == 56 * MB
    assert policy.worker_limit(10 * MB, supervisor_bytes=12 * MB, file_bytes=0) > 0
