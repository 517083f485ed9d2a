"""Faces brought onto the reference points that InsightFace's backbones are trained on."""

from __future__ import annotations

import cv2
import numpy as np

from faceshards.errors import FaceshardsError

SIZE = 112  # height and width of an aligned face, in pixels

# Left eye, right eye, nose, left and right corner of the mouth (left in the picture), x and y in pixels of a face of
# 112 x 112. Source: InsightFace, python-package/insightface/utils/face_align.py, arcface_dst.
REFERENCE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)  # (5, 2)


class AlignmentError(FaceshardsError):
    """Landmarks that fix no similarity transform, or an image that cannot be warped."""


def similarity(points: np.ndarray) -> np.ndarray:
    """Returns the similarity transform nearest to taking landmarks onto REFERENCE: (2, 3) float64, [scale * R | t].

    It minimises the sum of squared distances over rotation, scale and translation, reflections excluded.

    Args:
        points: (5, 2) float, x and y in pixels, in the order of REFERENCE.

    Raises:
        AlignmentError: another shape, a coordinate that is not finite, or points from which no scale follows.

    Source:
        Umeyama, IEEE PAMI 13(4), 1991, equations 34 to 43.
    """
    points = np.asarray(points, np.float64)
    if points.shape != REFERENCE.shape:
        raise AlignmentError(f"landmarks of shape {list(points.shape)}, not {list(REFERENCE.shape)}")
    if not np.isfinite(points).all():
        raise AlignmentError("a landmark is not finite")
    mean, target = points.mean(axis=0), REFERENCE.mean(axis=0)
    centred = points - mean
    variance = np.square(centred).sum() / len(points)
    if not 1e-12 * max(1.0, np.abs(mean).max()) ** 2 < variance < np.inf:
        raise AlignmentError("the landmarks lie on one point" if variance < np.inf else "a landmark is out of range")
    covariance = (REFERENCE - target).T @ centred / len(points)  # (2, 2)
    left, values, right = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    scale = values @ signs / variance
    if scale * np.sqrt(variance) < 1e-6:  # the face would be warped to one point
        raise AlignmentError("the landmarks fix no rotation")
    rotation = scale * (left * signs) @ right
    return np.column_stack([rotation, target - rotation @ mean])


def align(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the aligned face, (112, 112, 3) uint8: bilinear, black beyond the image's border.

    Args:
        image: (H, W, 3) uint8; the order of the channels stays.
        points: (5, 2) float, landmarks in pixels of this image.

    Raises:
        AlignmentError: as similarity(), or an image larger than OpenCV warps (32,767 pixels a side).
    """
    matrix = similarity(points)
    try:
        return np.asarray(cv2.warpAffine(image, matrix, (SIZE, SIZE), borderValue=(0.0, 0.0, 0.0)), np.uint8)
    except cv2.error as error:
        raise AlignmentError(f"an image of {list(image.shape)} cannot be warped: {error.err}") from None
