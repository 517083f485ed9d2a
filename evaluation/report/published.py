"""Accuracies in print, to set beside one's own: the same backbone, trained on the same set."""

from __future__ import annotations

SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")  # the field's, in its order

# By source, then backbone and training set: 10-fold accuracies in % on SETS.
PUBLISHED: dict[str, dict[tuple[str, str], tuple[float, ...]]] = {
    # mindspore-lab/mindface, README; it does not say whether mirror images were used.
    "mindface": {
        ("mbf", "casia"): (98.48, 86.84, 90.13, 90.92, 81.22),
        ("r50", "casia"): (98.67, 90.36, 91.75, 92.03, 83.67),
        ("r100", "casia"): (98.95, 90.94, 91.83, 92.43, 84.97),
        ("vit_t", "casia"): (98.40, 83.23, 87.28, 90.67, 80.70),
        ("vit_s", "casia"): (98.55, 85.56, 87.85, 91.08, 82.50),
        ("vit_b", "casia"): (98.33, 85.83, 87.42, 90.80, 81.40),
        ("vit_l", "casia"): (97.60, 84.54, 85.32, 89.73, 79.55),
        ("mbf", "ms1mv2"): (98.70, 88.21, 90.95, 91.75, 82.63),
        ("r50", "ms1mv2"): (99.77, 97.19, 97.78, 96.07, 92.03),
        ("r100", "ms1mv2"): (99.38, 96.80, 93.77, 93.27, 89.15),
        ("vit_t", "ms1mv2"): (99.72, 92.71, 96.72, 95.60, 89.95),
        ("vit_s", "ms1mv2"): (99.77, 95.77, 97.62, 95.80, 91.27),
        ("vit_b", "ms1mv2"): (99.82, 94.20, 97.52, 96.00, 90.97),
        ("vit_l", "ms1mv2"): (99.75, 93.71, 96.48, 95.82, 90.45),
    },
    # mk-minchul/CVLface, IR50.
    "CVLface": {("r50", "casia"): (99.37, 97.04, 94.40, 93.43, 90.02)},
}
# deepinsight/insightface, arcface_torch's README: TAR in % at FAR 1e-4 on IJB-C, by backbone and training set.
IJBC = {
    ("r50", "ms1mv3"): 96.37,
    ("r100", "glint360k"): 97.55,
    ("r100", "webface42m"): 97.70,
    ("vit_b", "webface42m"): 97.91,
}
_ALIASES = {"casiawebface": "casia", "facesemore": "ms1mv2"}


def key(name: str) -> str:
    """Returns a name without case, hyphens, underscores and blanks, as file names of one set differ by these."""
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def rank(name: str) -> int:
    """Returns a set's place in the field's order; sets that are not the field's come after.

    Args:
        name: of the set, perhaps with a part of its file's path before it.
    """
    keys, wanted = [key(known) for known in SETS], key(name.rpartition("/")[2])
    return keys.index(wanted) if wanted in keys else len(keys)


def published(backbone: str, trained_on: str, name: str) -> dict[str, float]:
    """Returns the accuracies in % that are in print, by source, of a backbone and training set on a set."""
    place, data = rank(name), _ALIASES.get(key(trained_on), key(trained_on))
    if place == len(SETS):
        return {}
    found = {source: rows.get((backbone, data)) for source, rows in PUBLISHED.items()}
    return {source: row[place] for source, row in found.items() if row is not None}


def published_ijbc(backbone: str, trained_on: str) -> float | None:
    """Returns arcface_torch's TAR in % at FAR 1e-4 on IJB-C, if it is in print."""
    return IJBC.get((backbone, _ALIASES.get(key(trained_on), key(trained_on))))
