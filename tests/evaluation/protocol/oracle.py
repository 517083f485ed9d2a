"""The protocol's equations as slow loops: the tests' yardstick, written without NumPy's shortcuts.

Each function takes lists of distances, of whether a pair is one person, and of its fold.
"""

from __future__ import annotations

import math


def squared(a, b):
    """Returns the squared distance of two vectors after each is divided by its length."""
    lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in v)) for v in (a, b)]
    return math.fsum((float(x) / lengths[0] - float(y) / lengths[1]) ** 2 for x, y in zip(a, b, strict=True))


def folds(pairs, count=10):
    """Returns the fold of each pair: in order, the first folds larger by one if need be."""
    each, rest = divmod(pairs, count)
    return [fold for fold in range(count) for _ in range(each + (fold < rest))]


def accuracy(distances, same, threshold, pairs):
    """Returns the share of pairs judged right when a distance below the threshold means the same person."""
    return sum((distances[i] < threshold) == bool(same[i]) for i in pairs) / len(pairs)


def best(distances, same, pairs):
    """Returns the first threshold of 0, 0.01, ..., 3.99 with the best accuracy."""
    found, threshold = -1.0, 0.0
    for k in range(400):
        candidate = accuracy(distances, same, k * 0.01, pairs)
        if candidate > found:
            found, threshold = candidate, k * 0.01
    return threshold


def ten_fold(distances, same, fold):
    """Returns the folds' accuracies and thresholds."""
    results, chosen = [], []
    for number in sorted(set(fold)):
        train = [i for i, other in enumerate(fold) if other != number]
        chosen.append(best(distances, same, train))
        results.append(accuracy(distances, same, chosen[-1], [i for i, other in enumerate(fold) if other == number]))
    return results, chosen


def rate(distances, same, threshold, pairs, kind):
    """Returns the share of a kind's pairs that is below the threshold; None of no pairs, where the protocol stops."""
    of_kind = [i for i in pairs if bool(same[i]) == kind]
    return sum(distances[i] < threshold for i in of_kind) / len(of_kind) if of_kind else None


def interpolated(rates, thresholds, target):
    """Returns the linear B-spline through (rates, thresholds) at the target; rates rise, some of them repeated.

    Between knots a <= target < b the coefficients of either side weigh (b - target) / (b - a), (target - a) / (b - a).
    """
    before = max(k for k, value in enumerate(rates) if value <= target)
    a, b = rates[before], rates[before + 1]
    weight = 1 / (b - a)
    return thresholds[before] * (weight * (b - target)) + thresholds[before + 1] * (weight * (target - a))


def val(distances, same, fold, target=1e-3):
    """Returns the folds' true and false accept rates where the other folds' false accept rate is the target."""
    vals, fars = [], []
    thresholds = [k * 0.001 for k in range(4000)]
    for number in sorted(set(fold)):
        train = [i for i, other in enumerate(fold) if other != number]
        test = [i for i, other in enumerate(fold) if other == number]
        rates = [rate(distances, same, threshold, train, False) for threshold in thresholds]
        threshold = interpolated(rates, thresholds, target) if max(rates) >= target else 0.0
        vals.append(rate(distances, same, threshold, test, True))
        fars.append(rate(distances, same, threshold, test, False))
    return vals, fars


def curve(distances, same):
    """Returns (true, false) accept rates when nothing, then each distance and all below it, is accepted."""
    points = [(0.0, 0.0)]
    totals = [sum(bool(s) == kind for s in same) for kind in (True, False)]
    for limit in sorted(set(distances)):
        accepted = [bool(s) for d, s in zip(distances, same, strict=True) if d <= limit]
        points.append((sum(accepted) / totals[0], sum(not s for s in accepted) / totals[1]))
    return points


def tar_at(distances, same, wanted):
    """Returns the largest true accept rate whose false accept rate is not above the wanted one."""
    return max(true for true, false in curve(distances, same) if false <= wanted)


def eer(distances, same):
    """Returns the mean of both error rates at the first point where they differ least."""
    points = curve(distances, same)
    true, false = min(points, key=lambda point: abs(1 - point[0] - point[1]))
    return (1 - true + false) / 2


def auc(distances, same):
    """Returns how often a pair of one person is nearer than a pair of two; a tie counts half."""
    genuine = [d for d, s in zip(distances, same, strict=True) if s]
    impostor = [d for d, s in zip(distances, same, strict=True) if not s]
    return sum((g < i) + (g == i) / 2 for g in genuine for i in impostor) / (len(genuine) * len(impostor))
