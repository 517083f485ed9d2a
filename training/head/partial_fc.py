"""The loss of a sample of classes spread over the ranks, and its gradients, in one graph of fixed shapes."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from training.device.distributed import Group
from training.head.margins.base import Margin

EPSILON = 1e-12  # the least length a vector is divided by, as in the reference's normalize


class Head(nn.Cell):
    """The margin softmax over the sampled classes of all ranks, with gradients written by hand.

    cos = x/|x| . (w/|w|)^T, limited to [-1, 1]; the margin at the target; logits = scale * cos; softmax over the
    samples of all ranks; loss = mean over the global batch of -log p(target). The gradient with respect to the cosine
    is scale * (p - onehot) / G, at the target times the slope of a margin that has one, and 0 at the negatives that the
    interclass filter took out. As in the reference the combined margin has none, it is outside the gradient: automatic
    differentiation through it would be another training. The reference limits p to at least 1e-30 in the loss it
    reports; this one does not (the gradient is the same). Where a margin has K centres a class, the class's cosine is
    the largest of theirs, and the gradient goes to that centre alone.

    The embedding gradient of a rank is that of the global mean loss with respect to the rank's own embeddings: the SUM
    over ranks of the backbone gradients (no mean, no factor world) is the gradient of the global mean loss. The
    reference multiplies by the world size because DDP averages.

    Args:
        group: the ranks; each gives B embeddings and S rows.
        margin: what is done at the target, scale and interclass filter.

    Source: Partial FC, arXiv 2010.05222, section 3 and 2203.15565; the loss is ArcFace's, arXiv 1801.07698,
    equation 3.
    """

    def __init__(self, group: Group, margin: Margin) -> None:
        super().__init__(auto_prefix=False)  # the margin's parameters keep their names
        self.group = group
        self.rank = group.rank
        self.scale = float(margin.scale)
        self.threshold = float(margin.interclass_threshold)
        self.centers = margin.centers
        self.target_cosine = margin.target_cosine()
        self.times = ops.MatMul()
        self.times_transposed = ops.MatMul(transpose_b=True)
        self.transposed_times = ops.MatMul(transpose_a=True)

    def construct(
        self, embeddings: ms.Tensor, rows: ms.Tensor, targets: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Returns the loss, d loss / d embeddings and d loss / d rows.

        Args:
            embeddings: (B, D) float32, this rank's, of any length.
            rows: (S, K * D) float32, the sampled centres of this rank, of any length; K is 1 but for sub-centres.
            targets: (G,) int32, G = world * B: the place of each global label in rows, -1 when another rank's.

        Returns:
            loss () float32, the mean over the G embeddings; (B, D) float32; (S, K * D) float32.
        """
        batch = embeddings.shape[0]
        total = targets.shape[0]
        length = ops.maximum(ops.sqrt(ops.square(embeddings).sum(axis=1, keepdims=True)), EPSILON)  # (B, 1)
        unit = embeddings / length  # (B, D)
        everyone = self.group.gather(unit)  # (G, D)
        lengths = self.group.gather(length)  # (G, 1)
        sampled = rows.shape[0]
        rows = rows.reshape(sampled * self.centers, -1)  # (S K, D)
        inverse = 1.0 / ops.maximum(ops.sqrt(ops.square(rows).sum(axis=1)), EPSILON)  # (S K,)

        cosines = self.times_transposed(everyone, rows) * inverse  # (G, S K)
        cosines = ops.clamp(cosines, -1.0, 1.0)
        cosine = cosines  # (G, S)
        if self.centers > 1:
            each = cosines.reshape(total, sampled, self.centers)
            cosine = each.max(axis=2)
            nearest = ops.equal(each.argmax(axis=2).expand_dims(2), ops.arange(0, self.centers))  # (G, S, K) bool
        index = ops.arange(0, sampled, dtype=ms.int32)
        own = ops.equal(targets.expand_dims(1), index.expand_dims(0))  # (G, S) bool
        has = (targets >= 0).astype(ms.float32)  # (G,)
        place = ops.maximum(targets, 0).expand_dims(1)  # (G, 1)
        target, slope = self.target_cosine(ops.gather_elements(cosine, 1, place), lengths)  # (G, 1), (G, 1) or None
        logits = ops.select(own, target.broadcast_to(cosine.shape), cosine)  # (G, S)
        if self.threshold > 0:
            dirty = ops.logical_and(cosine > self.threshold, ops.logical_not(own))  # (G, S) bool
            logits = ops.masked_fill(logits, dirty, 0.0)

        largest = self.group.max(logits.max(axis=1))  # (G,), of the cosines: scale is above 0
        powers = ops.exp((logits - largest.expand_dims(1)) * self.scale)  # (G, S)
        mine = (target.squeeze(1) - largest) * self.scale * has  # (G,) the target's logit where it is held, else 0
        both = self.group.sum(ops.stack((powers.sum(axis=1), mine)))  # (2, G)
        loss = (ops.log(both[0]) - both[1]).mean()

        gradient = powers * (self.scale / total / both[0]).expand_dims(1)  # (G, S): of the cosines
        gradient = gradient - own.astype(ms.float32) * (self.scale / total)
        if slope is not None:
            gradient = ops.select(own, gradient * slope, gradient)
        if self.threshold > 0:
            gradient = ops.masked_fill(gradient, dirty, 0.0)
        if self.centers > 1:
            gradient = (gradient.expand_dims(2) * nearest.astype(ms.float32)).reshape(cosines.shape)  # (G, S K)
        along = (gradient * cosines).sum(axis=0)  # (S K,): the part that would only lengthen a row
        gradient = gradient * inverse
        d_rows = self.transposed_times(gradient, everyone) - rows * (along * inverse * inverse).expand_dims(1)
        d_unit = self.group.sum(self.times(gradient, rows))  # (G, D)
        d_unit = d_unit[self.rank * batch : (self.rank + 1) * batch]  # (B, D)
        d_embeddings = (d_unit - unit * (d_unit * unit).sum(axis=1, keepdims=True)) / length
        return loss, d_embeddings, d_rows.reshape(sampled, -1)
