"""The protocol's equations as slow loops: the tests' yardstick, written without NumPy's shortcuts."""

from __future__ import annotations

import math


def squared(a, b):
    """Returns the squared distance of two vectors after each is divided by its length."""
    lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in v)) for v in (a, b)]
    return math.fsum((float(x) / lengths[0] - float(y) / lengths[1]) ** 2 for x, y in zip(a, b, strict=True))


def folds(pairs, count=10):
    """Returns for each fold its pairs: in order, the first ones larger by one if need be."""
    each, rest = divmod(pairs, count)
    found, start = [], 0
    for fold in range(count):
        end = start + each + (fold < rest)
        found.append(range(start, end))
        start = end
    return found


def accuracy(distances, same, threshold, pairs):
    """Returns the share of pairs judged right when a distance below the threshold means the same person."""
    return sum((distances[i] < threshold) == bool(same[i]) for i in pairs) / len(pairs)


def ten_fold(distances, same):
    """Returns the ten accuracies and the ten thresholds."""
    results, chosen = [], []
    for test in folds(len(same)):
        train = [i for i in range(len(same)) if i not in test]
        best, threshold = -1.0, 0.0
        for k in range(400):
            candidate = accuracy(distances, same, k * 0.01, train)
            if candidate > best:
                best, threshold = candidate, k * 0.01
        results.append(accuracy(distances, same, threshold, test))
        chosen.append(threshold)
    return results, chosen
