"""A linear map trained with mixup, against torch's own steps and against what it is kept as."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeladder.core.adapter_record import GdaRecord
from edgeladder.runtime.heads import linear_probe
from edgeladder.runtime.heads.blend import log_loss
from edgeladder.runtime.heads.closed_form import fit_head, head_arrays, head_from
from edgeladder.runtime.heads.fit_head import ladder_weight
from edgeladder.runtime.heads.kernel import normalise
from edgeladder.runtime.heads.linear_probe import beside_head, fit_linear, scaled
from tests.runtime.infer.test_pseudo_labels import CLASSES, world


def torch_steps(rows, labels, classes, seed):
    """The same steps by torch's autograd, AdamW and schedule, on the same draws."""
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(seed)
    given, wanted = torch.tensor(rows), torch.eye(classes)[torch.tensor(labels)]
    weights = torch.zeros(rows.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    averages = [torch.zeros_like(weights), torch.zeros_like(bias)]
    optimizer = torch.optim.AdamW([weights, bias], lr=3e-3, weight_decay=1e-2)
    size = max(min(128, len(rows)), 32)
    for step in range(200):
        one, other = generator.integers(0, len(rows), (2, size))
        share = torch.tensor(generator.random((size, 1), dtype=np.float32))
        mixed = share * given[one] + (1 - share) * given[other]
        target = share * wanted[one] + (1 - share) * wanted[other]
        loss = torch.nn.functional.cross_entropy(mixed @ weights + bias, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.5 * 3e-3 * (1 + np.cos(np.pi * step / 200))
        optimizer.step()
        decay = min(0.98, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, value in zip(averages, (weights, bias), strict=True):
                average.mul_(decay).add_(value, alpha=1 - decay)
    return [average.numpy() for average in averages]


@pytest.mark.parametrize("count", [2, 60])
def test_its_steps_are_torchs(count):
    inputs = world(count)
    rows = np.concatenate([normalise(tap) for tap in inputs.features[:2]], axis=1)
    rows = np.float32(4 * (rows - rows.mean(axis=0)))
    found = linear_probe._steps(rows, inputs.labels, CLASSES, 7)
    for mine, theirs in zip(found, torch_steps(rows, inputs.labels, CLASSES, 7), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-5)


def test_it_reads_the_last_two_taps_and_is_kept_as_a_rule_without_zero_shot():
    inputs = world(6)
    rule = fit_linear(inputs)
    assert rule.reads == (-3, -2) and rule.prior == 0
    changed = [np.array(tap) for tap in inputs.features]
    changed[-1][:] = 1.0
    np.testing.assert_array_equal(
        rule.logits(changed, inputs.zero_shot), rule.logits(inputs.features, 0 * inputs.zero_shot)
    )
    stored = head_from(*head_arrays(rule))
    assert isinstance(head_arrays(rule)[1], GdaRecord)
    np.testing.assert_allclose(
        stored.logits(inputs.features, inputs.zero_shot),
        rule.logits(inputs.features, inputs.zero_shot),
        atol=1e-3,
    )
    asked = world(30, seed=2)
    right = rule.logits(asked.features, asked.zero_shot).argmax(axis=1) == asked.labels
    assert right.mean() > 0.9


def test_the_same_pictures_give_the_same_map():
    first, second = fit_linear(world(4)), fit_linear(world(4))
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert np.any(fit_linear(world(4), seed=1).matrix != first.matrix)


def test_held_out_is_by_maps_that_did_not_see_the_fold():
    inputs = world(8, noise=2.5)
    rule = fit_linear(inputs)
    own = log_loss(rule.logits(inputs.features, inputs.zero_shot), inputs.labels)
    assert log_loss(rule.held_out, inputs.labels) > 1.2 * own
    assert fit_linear(world(1)).held_out is None


def spread(logits):
    return (logits - logits.mean(axis=1, keepdims=True)).std()


def test_beside_a_head_it_counts_by_pictures_and_by_held_out_logits():
    inputs = world(8, noise=2.0)
    head = fit_head("blend", inputs.features, inputs.labels, inputs.zero_shot)
    plain = head.logits(inputs.features, inputs.zero_shot)
    rule = fit_linear(inputs)
    own = rule.logits(inputs.features, inputs.zero_shot)
    unit = spread(head.held_out) / spread(rule.held_out)
    # the ratio of both weights that held-out logits ask for, by brute force
    grid = [
        (log_loss(a * head.held_out + b * rule.held_out, inputs.labels), b / a)
        for a in np.linspace(0.05, 3, 60)
        for b in np.linspace(0, 3, 61) * unit
    ]
    asked = min(grid)[1] / unit
    first = 0.4 * times(inputs)
    share = (first + min(asked, 0.8)) / 2
    joined = beside_head(head, inputs, len(inputs.labels))
    found = joined.logits(inputs.features, inputs.zero_shot)
    measured = float(((found - plain) * own).sum() / (unit * own * own).sum())
    assert measured == pytest.approx(share, abs=0.03)
    np.testing.assert_allclose(found, plain + measured * unit * own, atol=1e-6)
    assert joined.held_out is not None and joined.held_out.shape == plain.shape
    # a sample of many pictures: the half that pictures decide counts less
    far = beside_head(head, inputs, 240).logits(inputs.features, inputs.zero_shot)
    less = measured - first / 2 + first / 2 * min(8 / 80, 24 / 240)
    np.testing.assert_allclose(far, plain + less * unit * own, atol=1e-6)


def times(inputs):
    """How much more a map counts by what zero-shot explains, temperatures tried one by one."""
    count, classes = inputs.zero_shot.shape
    tried = [log_loss(t * inputs.zero_shot, inputs.labels) for t in np.geomspace(1e-3, 30, 4000)]
    explained = count * (np.log(classes) - min(tried)) - 2
    return 2 * np.exp(-5 * max(0, explained) / (count * np.log(classes)))


def test_where_zero_shot_explains_the_labels_the_map_counts_less():
    inputs = world(8)
    chance = np.random.default_rng(3).normal(size=inputs.zero_shot.shape)
    known = 6 * np.eye(inputs.zero_shot.shape[1])[inputs.labels] + chance
    parts = []
    for zero_shot in (chance, known):
        given = replace(inputs, zero_shot=zero_shot)
        head = fit_head("kernel", given.features, given.labels, zero_shot)
        found = beside_head(head, given, len(given.labels)).logits(given.features, zero_shot)
        more = found - head.logits(given.features, zero_shot)
        parts.append(spread(more) / spread(head.held_out))
    assert parts[1] < 0.8 * parts[0]


def test_at_one_picture_of_a_class_nothing_is_held_out():
    one = world(1)
    head = fit_head("blend", one.features, one.labels, one.zero_shot)
    told = head.logits(one.features, one.zero_shot)
    alone = fit_linear(one).logits(one.features, one.zero_shot)
    np.testing.assert_allclose(
        beside_head(head, one, 3).logits(one.features, one.zero_shot),
        told + 0.25 * times(one) * spread(told) / spread(alone) * alone,
        atol=1e-3,  # of the temperature that is tried
    )


@pytest.mark.parametrize("kind", ["gda", "kernel"])
def test_a_scaled_head_says_so_much_more(kind):
    inputs = world(8)
    head = fit_head(kind, inputs.features, inputs.labels, inputs.zero_shot)
    larger = scaled(head, 3.0)
    np.testing.assert_allclose(
        larger.logits(inputs.features, inputs.zero_shot),
        3 * head.logits(inputs.features, inputs.zero_shot),
        rtol=1e-9,
    )
    np.testing.assert_allclose(larger.held_out, 3 * head.held_out)


def test_a_ladder_counts_by_what_its_beginning_explains():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 4)
    right = 4 * np.eye(10)[labels] + generator.normal(size=(40, 10))
    assert ladder_weight(right, labels) > 0.95
    assert ladder_weight(generator.normal(size=(40, 10)), labels) == 0.0
    assert ladder_weight(-right, labels) == 0.0
    # the formula, with the best temperature found by brute force
    weak = 0.5 * np.eye(10)[labels] + 0.5 * generator.normal(size=(40, 10))
    losses = [log_loss(t * weak, labels) for t in np.linspace(0, 6, 6001)]
    explained = 40 * (np.log(10) - min(losses))
    assert ladder_weight(weak, labels) == pytest.approx(max(0, 1 - 2 / explained), abs=0.01)
