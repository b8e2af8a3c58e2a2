"""The closed-form heads written out plainly, fit by fit: the referee of the fast ones."""

from __future__ import annotations

import numpy as np

from edgeladder.runtime.heads import kernel_search
from edgeladder.runtime.heads.blend import fit_weights
from edgeladder.runtime.heads.discriminant import gda_rule, unit_spread
from edgeladder.runtime.heads.kernel_search import Choice
from edgeladder.runtime.logits import softmax


def plain_held_out_terms(rows, labels, folds, classes):
    """`discriminant.held_out_terms` with a rule fitted anew for every fold."""
    term = np.empty((len(labels), classes))
    for fold in np.unique(folds):
        out = folds == fold
        rule = gda_rule(rows[~out], labels[~out], classes)
        matrix, bias = unit_spread(*rule, rows[~out])
        term[out] = rows[out] @ matrix + bias
    return term


class PlainSearch:
    """`kernel_search.Search` with every candidate and ridge judged whole, in float64."""

    def __init__(self, distances, bases, onehot, labels, zero_shot, folds):
        self.distances, self.bases, self.onehot = distances, bases, onehot
        self.labels, self.zero_shot, self.folds = labels, zero_shot, folds

    def run(self):
        final = len(self.distances) - 1
        best = None
        for scale in kernel_search._SCALES:
            for shape in ([0.0] * final + [1.0], [1.0 / (final + 1)] * (final + 1)):
                best = self.better(best, [scale * w for w in shape], 0.0)
        self.bases = [best[0].base]
        for _ in range(kernel_search._PASSES):
            before = best[0].loss
            for tap in range(final):
                size = sum(best[0].weights)
                for gain in kernel_search._GAINS:
                    shape = list(best[0].weights)
                    shape[tap] = gain * max(shape[final], 1e-3)
                    mixture = [w * size / sum(shape) for w in shape]
                    best = self.better(best, mixture, kernel_search._MARGIN)
            for factor in (0.5, 2.0):
                best = self.better(best, [w * factor for w in best[0].weights], 0.0)
            if best[0].loss >= before:
                break
        return best

    def better(self, best, weights, margin):
        found = self.judge(weights)
        if best is None or found[0].loss < best[0].loss * (1 - margin):
            return found
        return best

    def judge(self, weights):
        pairs = zip(weights, self.distances, strict=True)
        gram = np.exp(-sum(w * d.astype(np.float64) for w, d in pairs))
        found = None
        for ridge in kernel_search._RIDGES:
            inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
            for base in self.bases:
                targets = self.onehot - softmax(base * self.zero_shot)
                term = self.leave_out(inverse, targets)
                terms = [self.zero_shot, term]
                (prior, weight), loss = fit_weights(terms, self.labels, start=(0.3, 6.0))
                if found is None or loss < found[0].loss:
                    choice = Choice(tuple(weights), ridge, weight, prior, loss, base)
                    found = choice, prior * self.zero_shot + weight * term
        return found

    def leave_out(self, inverse, targets):
        product, left = inverse @ targets, np.empty_like(targets)
        for fold in np.unique(self.folds):
            rows = np.flatnonzero(self.folds == fold)
            left[rows] = targets[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], product[rows])
        return left
