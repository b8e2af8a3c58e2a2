"""The plan: what fits is chosen fastest first, what does not is refused by name."""

import os
from types import SimpleNamespace as Plain

import pytest

from edgeladder.budget.planner import check, only, plan
from edgeladder.budget.policy import PLANNED_SHARE
from edgeladder.budget.tower_costs import tower_bytes
from edgeladder.budget.windows import Windows
from edgeladder.budget.workload import Asked, Workload
from edgeladder.core.errors import BudgetError
from edgeladder.core.plan import MachineBaseline

MB = 1_000_000
BASELINE = MachineBaseline(
    supervisor_bytes=9 * MB,
    worker_bytes=58 * MB,
    settled_bytes=30 * MB,
    pictures_bytes=6 * MB,
    training_bytes=2 * MB,
    file_bytes=33 * MB,
    data_slack_bytes=90 * MB,
)


def graph(nodes, fixed=0.0, image=0.0, text=0.0, residual=0.0):
    peaks = [[fixed, image, text]]
    return Plain(file=f"{nodes}.onnx", nodes=nodes, peaks=peaks, residual_bytes=residual)


def tower(segment, hidden, count=14):
    """Segments that pass hidden states of (tokens, width) on."""
    shape = [Plain(name="hidden", shape=hidden)]
    record = Plain(
        weight_bytes=segment, opened_bytes=segment, convolves=False, gives_maps=False,
        computes_int8=False,
        activation_bytes=8 * MB, inputs=shape, outputs=shape,
    )  # fmt: skip
    return Plain(
        segments=[record] * count,
        taps=[Plain(tokens=5, width=hidden[1])] * 12,
        embedding="embedding",
        embedding_pre=None,
        int8=None,
    )


def manifest(parameters=3_000_000, segment=28 * MB):
    """Sizes of the reference ladder on ViT-B/16."""
    group = {"tokens": 5, "taps": list(range(12)), "width": 768}
    return Plain(
        model=Plain(embedding_dim=512),
        preprocess=Plain(size=224),
        tokenizer=Plain(context_length=77),
        image=tower(segment, [197, 768]),
        text=tower(12 * MB, [77, 512]),
        ladder=Plain(
            parameters=[Plain(name="w", shape=[parameters // 1000, 1000])],
            buffers=[],
            image_inputs=[],
            groups=[
                Plain(side="image", **group),
                Plain(side="text", **{**group, "tokens": 3, "width": 512}),
            ],
            graphs={
                "fused": graph(1614, 44, 289e3, 172e3),
                "recompute": graph(2017, 4, 94e3, 57e3),
                "encode_image": graph(302, 0, 46e3),
                "encode_text": graph(302, 0, 0, 28e3),
                "loss": graph(23),
                "backward_image": graph(1125, 23e3, 417e3),
                "backward_text": graph(1125, 23e3, 0, 251e3),
                "forward_saved_image": graph(302, 0, 46e3, 0, 264e3),
                "forward_saved_text": graph(302, 0, 0, 28e3, 160e3),
                "backward_saved_image": graph(872, 23e3, 348e3),
                "backward_saved_text": graph(872, 23e3, 0, 209e3),
            },
        ),
    )


def decide(budget, **changes):
    values = {"classes": 100, "pictures": 1600, "batch": 32, **changes}
    return plan(Workload(manifest=manifest(), **values), BASELINE, budget)


def test_a_large_budget_takes_the_fastest_way():
    decided = decide(4_000 * MB)
    train = decided.phases["train"]
    assert decided.fits and train.mode == "fused" and train.moments == "fp32" and train.arena
    precompute = decided.phases["precompute"]
    assert precompute.whole and precompute.batch == 8 and precompute.group is None


def test_disk_between_segments_is_known_beforehand():
    precompute = decide(200 * MB).phases["precompute"]
    hidden, taps, pixels = 2 * 4 * 197 * 768, 12 * 4 * 5 * 768, 3 * 224 * 224
    assert not precompute.whole
    assert precompute.disk_bytes == precompute.group * (hidden + taps + pixels)


def test_smaller_budgets_go_down_the_ladder_and_eight_bits_come_last():
    seen = []
    for budget in range(400, 100, -1):
        decided = only(decide(budget * MB), "train")
        train = decided.phases["train"]
        step = (train.moments, train.mode, train.arena, train.chunk)
        if decided.fits and step not in seen:
            seen.append(step)
            assert train.planned_peak_bytes <= PLANNED_SHARE * budget * MB
    kinds = [moments for moments, *_ in seen]
    assert kinds == sorted(kinds) and kinds[0] == "fp32"
    assert seen[0] == ("fp32", "fused", True, None)
    assert ("fp32", "recompute", False, None) in seen
    assert any(mode == "chunked" for _, mode, *_ in seen)


def test_a_head_is_planned_for_and_fitted_on_fewer_pictures_where_there_is_less_room():
    def seen(kind):
        of = {"head": kind, "head_pictures": 600, "classes": 10}
        return [decide(room * MB, **of).phases["evaluate"] for room in (220, 330, 500)]

    assert [phase.head_pictures for phase in seen("none")] == [None] * 3
    assert [phase.head_pictures for phase in seen("gda")] == [600] * 3  # it hardly grows
    blend = seen("blend")
    assert [phase.head_pictures for phase in blend] == [150, 300, 600]
    for room, phase in zip((220, 330, 500), blend, strict=True):
        assert phase.planned_peak_bytes <= PLANNED_SHARE * room * MB
        assert phase.parts["head"] > 20 * MB
    refused = decide(160 * MB, head="blend", head_pictures=600, classes=10)
    assert not refused.fits and refused.least["evaluate"] > PLANNED_SHARE * 160 * MB
    many = decide(1000 * MB, head="kernel", head_pictures=200, classes=60).phases["evaluate"]
    least = decide(50 * MB, head="kernel", head_pictures=200, classes=60).phases["evaluate"]
    assert (many.head_pictures, least.head_pictures) == (200, 200)  # 100 are not two a class


def chunked(room, **changes):
    values = {"classes": 100, "pictures": 1600, "batch": 32, "moments": "fp32", **changes}
    workload = Workload(manifest=manifest(), **values)
    return plan(
        workload, BASELINE, int(room * MB / PLANNED_SHARE), asked=Asked(mode="chunked")
    ).phases["train"]


def test_what_a_chunked_step_has_room_for_is_held_for_its_second_pass():
    plenty = chunked(400)
    phases = {room: chunked(room) for room in range(144, 240, 3)}
    assert all(phase.planned_peak_bytes <= room * MB for room, phase in phases.items())
    assert phases[144].hold_bytes == 0
    assert any(0 < phase.hold_bytes < plenty.hold_bytes for phase in phases.values())
    windows = Windows(manifest().ladder, 32, 100, plenty.chunk)
    assert plenty.hold_bytes == windows.most_held(1e12)
    # everything held: no graph that encodes again is kept loaded
    assert set(windows.graphs(plenty.hold_bytes)) == {
        "loss", "forward_saved_image", "backward_saved_image",
        "forward_saved_text", "backward_saved_text",
    }  # fmt: skip
    assert windows.seconds(plenty.hold_bytes) < windows.seconds(0)
    times = [
        Windows(manifest().ladder, 32, 100, phase.chunk).seconds(phase.hold_bytes)
        for phase in (chunked(room) for room in range(145, 220, 10))
    ]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]  # more room, less time


def test_classes_come_in_windows_that_weigh_as_much_as_the_pictures():
    train = chunked(150)
    assert train.class_chunk > train.chunk
    assert chunked(138, classes=50_000).chunk  # planned in no time either


def test_the_smallest_budget_named_is_the_smallest_that_fits():
    refused = decide(50 * MB)
    assert not refused.fits
    with pytest.raises(BudgetError, match="the budget is 50 MB") as caught:
        check(refused)
    least = caught.value.minimum_budget_bytes
    assert caught.value.exit_code == 3 and f"--budget {least // MB}MB" in caught.value.remedy
    assert decide(least).fits and not decide(least - MB).fits
    check(decide(least))


def test_a_peak_does_not_grow_with_classes_where_chunked_and_little_with_pictures():
    def peak(**changes):
        decided = plan(
            Workload(manifest=manifest(), **{"batch": 32, "pictures": 1000, **changes}),
            BASELINE,
            10_000 * MB,
            asked=Asked(mode="chunked", chunk=16, hold=False),
        )
        return decided.phases["train"].planned_peak_bytes

    assert peak(classes=1000) < 1.05 * peak(classes=10)
    assert peak(classes=10, pictures=50_000) < 1.08 * peak(classes=10)


def test_one_phase_alone_has_its_own_smallest_budget():
    decided = decide(130 * MB)
    assert only(decided, "precompute").phases.keys() == {"precompute"}
    assert only(decided, "precompute").minimum_budget_bytes <= decided.minimum_budget_bytes


def test_the_json_is_the_designs():
    values = decide(300 * MB).to_json()
    assert {"fits", "minimum_budget_bytes", "phases"} <= values.keys()
    assert list(values["phases"]) == ["precompute", "train", "evaluate"]
    assert values["phases"]["precompute"].keys() >= {"batch", "whole"}


def test_views_are_counted_and_told():
    """Keys and places of 64 views of a hundred thousand pictures are hundreds of megabytes."""
    few, many = (decide(8_000 * MB, pictures=100_000, views=views) for views in (0, 64))
    assert (few.views, many.views, many.to_json()["views"]) == (0, 64, 64)
    for name, least in (("precompute", 700 * MB), ("train", 100 * MB)):
        more = many.least[name] - few.least[name]
        assert least < more < 2 * least


def test_what_planning_takes_is_part_of_the_smallest_budget():
    workload = Workload(manifest=manifest(), classes=2, pictures=4, batch=1)
    decided = plan(workload, BASELINE, 4_000 * MB, planning_bytes=900 * MB)
    assert decided.minimum_budget_bytes == 1000 * MB


def test_the_machines_baseline_is_measured_once_and_remembered(tmp_path):
    from edgeladder.jobs.machine_baseline import machine_baseline

    first = machine_baseline(tmp_path)
    assert 5 * MB < first.supervisor_bytes < 30 * MB
    assert 30 * MB < first.settled_bytes + 5 * MB < first.worker_bytes < 150 * MB
    before = os.stat(tmp_path / "baseline.json").st_mtime_ns
    assert machine_baseline(tmp_path) == first
    assert os.stat(tmp_path / "baseline.json").st_mtime_ns == before
    (tmp_path / "baseline.json").write_text("{")
    assert machine_baseline(tmp_path).worker_bytes > 30 * MB


def test_what_is_not_trained_is_counted_once():
    """Frozen copies have neither gradients nor moments, but they are there."""
    held = manifest()
    held.ladder.buffers.append(Plain(name="prompts.copies", shape=[1000, 1000]))
    before, after = (
        plan(
            Workload(manifest=given, classes=10, pictures=160, batch=32, engine="stock"),
            BASELINE,
            8_000 * MB,
        )
        .phases["train"]
        .planned_peak_bytes
        for given in (manifest(), held)
    )
    assert 4e6 <= after - before < 4.2e6


def test_opening_a_bottleneck_holds_most_of_its_weights_twice():
    """RN50's largest piece took 1.40 times its weights while it was opened; matrices take 1.13."""
    plain = Plain(
        weight_bytes=60 * MB, opened_bytes=60 * MB, convolves=True, computes_int8=False,
        activation_bytes=MB, inputs=[Plain(name="a", shape=[64, 7, 7])],
    )  # fmt: skip
    maps = Plain(outputs=[Plain(name="b", shape=[64, 7, 7])], gives_maps=True, **vars(plain))
    pooled = Plain(outputs=[Plain(name="embedding", shape=[64])], gives_maps=False, **vars(plain))
    needed = [
        tower_bytes(
            Plain(segments=[pooled, last], embedding="embedding", embedding_pre=None, taps=[]),
            *(1, False, None),
        )
        for last in (maps, pooled)
    ]
    assert needed[0] >= 1.4 * 60 * MB > needed[1] > 1.13 * 60 * MB


def test_labels_for_unlabelled_pictures_take_what_room_there_is():
    def found(budget, **changes):
        values = {"classes": 10, "pictures": 400, "labelled": 160, "unlabelled": 5000, **changes}
        return decide(budget * MB, pseudo_labelled=1200, **values)

    sizes = [found(room).phases["pseudo_label"].head_pictures for room in (2000, 300, 200)]
    assert sizes[0] == 1200 > sizes[1] > sizes[2] >= 150
    assert list(found(2000).phases) == ["precompute", "pseudo_label", "train", "evaluate"]
    # flat in their number, but for what is known of each
    more = found(2000, unlabelled=100_000).phases["pseudo_label"].planned_peak_bytes
    assert more - found(2000).phases["pseudo_label"].planned_peak_bytes < 300 * 100_000
    # further passes hold a second head
    passes = [found(2000, self_training_passes=n).phases["pseudo_label"] for n in (1, 3)]
    assert passes[0].planned_peak_bytes < passes[1].planned_peak_bytes
    # what has no room is left out, and refuses nothing
    without = found(2000, unlabelled=0)
    assert "pseudo_label" not in without.phases and without.unlabelled == 0
    narrow = found(90)
    assert "pseudo_label" not in narrow.phases and narrow.unlabelled == 0
