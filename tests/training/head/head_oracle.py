"""The head in float64 and in the order of the papers: an oracle that shares no code with training.head.partial_fc."""

from __future__ import annotations

import numpy as np


class AdaFace:
    """AdaFace (arXiv 2204.00964) as its paper and the authors' code have it: margin and running statistics.

    Call it with the embeddings of a batch (G, D); target(i, cosine) is the margin at the i-th of them, with its
    derivative by the cosine.
    """

    def __init__(self, m=0.4, h=0.333, mean=20.0, deviation=100.0):
        self.m, self.h, self.mean, self.deviation = m, h, mean, deviation

    def __call__(self, embeddings):
        norms = np.clip(np.linalg.norm(np.asarray(embeddings, np.float64), axis=1), 0.001, 100)
        self.mean += 0.01 * (norms.mean() - self.mean)
        self.deviation += 0.01 * (norms.std(ddof=1) - self.deviation)
        self.z = np.clip(self.h * (norms - self.mean) / (self.deviation + 1e-3), -1, 1)
        return self.target

    def target(self, i, cosine):
        theta = np.arccos(np.clip(cosine, -0.999, 0.999))
        wider = theta - self.m * self.z[i]
        moved = abs(cosine) <= 0.999 and 1e-3 <= wider <= np.pi - 1e-3
        wider = np.clip(wider, 1e-3, np.pi - 1e-3)
        return np.cos(wider) - (self.m + self.m * self.z[i]), np.sin(wider) / np.sin(theta) * moved


def head(embeddings, rows, targets, m1=1.0, m2=0.0, m3=0.0, scale=64.0, threshold=0.0, margin=None, k=1):
    """Returns loss, gradient of embeddings, gradient of rows; every step by its own vector calculus, one by one.

    embeddings (G, D), rows (S, k D), targets (G,) int with -1 for a class that is not among the rows; margin(i, cosine)
    gives the cosine after it and its slope, in place of the combined margin of m1, m2, m3.
    """
    margin = margin or (lambda i, cosine: (np.cos(m1 * np.arccos(cosine) + m2) - m3, 1))
    x, w = np.asarray(embeddings, np.float64), np.asarray(rows, np.float64).reshape(len(rows) * k, -1)
    g = len(x)
    x_length, w_length = (np.sqrt((a * a).sum(1, keepdims=True)) for a in (x, w))
    xn, wn = x / x_length, w / w_length
    cosines = np.clip(xn @ wn.T, -1, 1).reshape(g, len(rows), k)
    cosine, nearest = cosines.max(axis=2), cosines.argmax(axis=2)
    logits, slope = cosine.copy(), np.ones_like(cosine)
    for i in range(g):
        for j in range(len(rows)):
            if j == targets[i]:
                logits[i, j], slope[i, j] = margin(i, cosine[i, j])
            elif threshold > 0 and cosine[i, j] > threshold:
                logits[i, j] = slope[i, j] = 0
    logits *= scale
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    onehot = np.zeros_like(p)
    onehot[np.flatnonzero(targets >= 0), targets[targets >= 0]] = 1
    loss = -np.log((p * onehot).sum(1)).mean()
    d_cosine = (p - onehot) / g * scale * slope
    d_cosine = (np.eye(k)[nearest] * d_cosine[:, :, None]).reshape(g, -1)
    d_xn, d_wn = d_cosine @ wn, d_cosine.T @ xn
    d_x = (d_xn - xn * (d_xn * xn).sum(1, keepdims=True)) / x_length
    d_w = (d_wn - wn * (d_wn * wn).sum(1, keepdims=True)) / w_length
    return loss, d_x, d_w.reshape(np.shape(rows))
