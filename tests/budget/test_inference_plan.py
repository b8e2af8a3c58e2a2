"""The plan of predict, evaluate on pictures and deploy: whole, streamed, or refused by name."""

from dataclasses import replace

import pytest

from edgeladder.budget.planner import check, plan_inference
from edgeladder.budget.policy import PLANNED_SHARE, PREDICT_GROUP, PREDICT_TEXT_GROUP
from edgeladder.budget.workload import InferenceWorkload
from edgeladder.core.errors import BudgetError, ConfigError
from edgeladder.runtime.classifier import InferenceSizes
from tests.budget.test_plan import BASELINE, MB, manifest

WORK = InferenceWorkload(manifest=manifest(), classes=100, prompts=700, head_bytes=MB)
MODEL = 14 * 28 * MB  # the image tower's weights


def decide(phase, budget, **changes):
    return plan_inference(replace(WORK, **changes), phase, BASELINE, budget * MB)


@pytest.mark.parametrize("phase", ["predict", "evaluate_pictures"])
def test_towers_are_whole_where_memory_is_ample_and_streamed_where_it_is_not(phase):
    ample = decide(phase, 2_000)
    assert list(ample.phases) == [phase] and ample.fits
    whole, streamed = ample.phases[phase], decide(phase, 500).phases[phase]
    assert (whole.whole, whole.batch, whole.group, whole.disk_bytes) == (True, 4, None, 0)
    assert whole.planned_peak_bytes > MODEL > streamed.planned_peak_bytes
    assert not streamed.whole and streamed.group == PREDICT_GROUP and streamed.disk_bytes > 0


@pytest.mark.parametrize("phase", ["predict", "deploy"])
def test_the_smallest_budget_named_is_the_smallest_that_fits(phase):
    refused = decide(phase, 50)
    assert not refused.fits
    with pytest.raises(BudgetError, match=f"{phase} needs") as caught:
        check(refused)
    least = caught.value.minimum_budget_bytes
    fitting = plan_inference(WORK, phase, BASELINE, least)
    assert fitting.fits and fitting.phases[phase].planned_peak_bytes <= PLANNED_SHARE * least
    assert not plan_inference(WORK, phase, BASELINE, least - MB).fits


def test_a_deployed_file_is_opened_whole_whatever_the_towers_run_in():
    least = {
        d: decide("deploy", 50, dtype=d).least["deploy"] for d in ("fp32", "fp16", "int8-weights")
    }
    assert least["fp32"] > MODEL and least["fp32"] - least["int8-weights"] > 0.4 * MODEL
    assert least["fp16"] > least["fp32"]  # read small, and widened beside that
    assert decide("predict", 50).least["predict"] < least["int8-weights"]


def test_an_int8_tower_is_deployed_as_it_is():
    work = replace(WORK, manifest=manifest(segment=7 * MB))
    work.manifest.image.int8 = object()
    decided = [
        plan_inference(replace(work, dtype=dtype), "deploy", BASELINE, 50).least["deploy"]
        for dtype in ("fp32", "int8-weights")
    ]
    assert decided[0] - decided[1] < 0.1 * MODEL  # the ladder's own weights


def test_more_prompts_classes_and_pictures_at_a_time_need_more():
    few = decide("predict", 2_000).phases["predict"].planned_peak_bytes
    assert decide("predict", 2_000, prompts=7_000).phases["predict"].planned_peak_bytes > few
    sizes = [p for p in (decide("predict", b).phases["predict"] for b in (150, 210, 2_000))]
    peaks = [size.planned_peak_bytes for size in sizes]
    assert peaks == sorted(peaks)


def test_new_names_cost_their_embeddings_and_not_their_activations():
    """Prompts pass in groups, so that ten times the names are not ten times the memory."""
    parts = {
        count: decide("predict", 2_000, classes=count, prompts=5 * count, most_prompts=5)
        .phases["predict"]
        .parts["classes"]
        for count in (1_000, 10_000)
    }
    kept = 8 * (2 * manifest().model.embedding_dim + 5 * manifest().tokenizer.context_length)
    assert parts[10_000] - parts[1_000] == 9_000 * kept
    assert InferenceSizes().text_group == PREDICT_TEXT_GROUP  # the runtime's own is the plan's


def test_judging_many_names_counts_who_was_taken_for_whom():
    many = {"classes": 4_000, "prompts": 20_000}
    judged = decide("evaluate_pictures", 4_000, **many).phases["evaluate_pictures"]
    asked = decide("predict", 4_000, **many).phases["predict"]
    assert judged.planned_peak_bytes - asked.planned_peak_bytes > 8 * 4_000**2


def test_an_unknown_phase_is_refused():
    with pytest.raises(ConfigError, match="unknown phase 'classify'"):
        decide("classify", 100)
