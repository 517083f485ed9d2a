"""The head in float64 and in the order of the papers: an oracle that shares no code with training.head.partial_fc."""

from __future__ import annotations

import numpy as np


def head(embeddings, rows, targets, m1=1.0, m2=0.0, m3=0.0, scale=64.0, threshold=0.0):
    """Returns loss, gradient of embeddings, gradient of rows; every step by its own vector calculus, one by one.

    embeddings (G, D), rows (S, D), targets (G,) int with -1 for a class that is not among the rows.
    """
    x, w = np.asarray(embeddings, np.float64), np.asarray(rows, np.float64)
    g = len(x)
    x_length, w_length = (np.sqrt((a * a).sum(1, keepdims=True)) for a in (x, w))
    xn, wn = x / x_length, w / w_length
    cosine = np.clip(xn @ wn.T, -1, 1)
    logits, alive = cosine.copy(), np.ones_like(cosine)
    for i in range(g):
        for j in range(len(w)):
            if j == targets[i]:
                logits[i, j] = np.cos(m1 * np.arccos(cosine[i, j]) + m2) - m3
            elif threshold > 0 and cosine[i, j] > threshold:
                logits[i, j] = alive[i, j] = 0
    logits *= scale
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    onehot = np.zeros_like(p)
    onehot[np.flatnonzero(targets >= 0), targets[targets >= 0]] = 1
    loss = -np.log((p * onehot).sum(1)).mean()
    d_cosine = (p - onehot) / g * scale * alive
    d_xn, d_wn = d_cosine @ wn, d_cosine.T @ xn
    d_x = (d_xn - xn * (d_xn * xn).sum(1, keepdims=True)) / x_length
    d_w = (d_wn - wn * (d_wn * wn).sum(1, keepdims=True)) / w_length
    return loss, d_x, d_w
