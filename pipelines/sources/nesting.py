"""Whether the folders below a root are people, or what holds people: train and val, imgs, parts of an archive."""

from __future__ import annotations

import os
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from faceshards.storage.location import StoredPath, as_location
from pipelines.sources.leftovers import words

_SPLITS = frozenset(
    ("train", "training", "trainset", "val", "valid", "validation", "test", "testing", "testset", "eval", "evaluation")
)
"""Words in the name of a folder that holds a part of a set."""

_HOLDERS = _SPLITS.union(
    ("images", "image", "imgs", "img", "pictures", "photos", "faces", "data", "dataset", "set", "raw"),
    ("aligned", "crops", "cropped", "people", "identities", "persons", "ids"),
)
"""Words in the name of a folder that holds people rather than pictures of one."""

_TOLD = 3  # names in a message


def doubt(root: str, paths: pa.ChunkedArray) -> str:
    """Returns why the folders of a root may be no people, and what to say instead; "" if they plainly are.

    Args:
        root: the image folder.
        paths: of its pictures, below the root.
    """
    is_deep = pc.greater(pc.count_substring(paths, "/"), 1)
    deep, shallow = paths.filter(is_deep), paths.filter(pc.invert(is_deep))
    people = pc.unique(pc.replace_substring_regex(paths, "/(?s:.*)", "")).to_pylist()
    if not len(deep):
        if not all(words(name) & _SPLITS and words(name) <= _HOLDERS for name in people):
            return ""
        return (
            f"{root}: its folders ({_some(people)}) are named like parts of a set, and each would be one person; put "
            "the pictures of each person into a folder, or pass --set nested=true if these are people"
        )
    folders = pc.unique(pc.replace_substring_regex(deep, "/[^/]*$", "")).to_pylist()
    counted = pc.value_counts(pc.replace_substring_regex(paths, "/[^/]*$", ""))
    direct = Counter(
        dict(zip(*(column.to_pylist() for column in counted.flatten()), strict=True))
    )  # pictures in a folder
    below = Counter(map(os.path.dirname, folders))

    def holds_people(path: str) -> bool:  # a stray picture beside the folders in it makes it no person
        return 0 < below[path] >= direct[path]

    holders = Counter(os.path.dirname(folder) for folder in folders if not holds_people(folder))
    holders = Counter({path: count for path, count in holders.items() if holds_people(path)})
    said = f"{root}: {len(deep)} of {len(paths)} pictures lie in sub-folders of its folders"
    if len(deep) > len(shallow) and _hold_people(holders, len(people)):
        roots = sorted(holders, key=lambda path: ("train" not in path.lower(), -holders[path], path))
        each = [f"--source {_typed(os.path.join(root, path))} ({holders[path]} folders)" for path in roots[:_TOLD]]
        more = f" or {len(roots) - _TOLD} others" if len(roots) > _TOLD else ""
        return (
            f"{said}, so that {_some(people)} would be the people, who seem to lie deeper: "
            f"{', or '.join(each)}{more}; pass --set nested=true if those are people whose pictures lie in sub-folders"
        )
    return (
        f"{said}, such as {folders[0]}; pass --set nested=true if they show the people whose folders these are in, or "
        "name the folder that holds the people's folders with --source"
    )


def _hold_people(holders: Counter[str], tops: int) -> bool:
    """Returns whether folders hold people rather than pictures of one: a lone one does, named ones, or few with many.

    Args:
        holders: how many folders with pictures each has.
        tops: folders in the root.
    """
    named = any(words(os.path.basename(path)) & _HOLDERS for path in holders)
    return bool(holders) and (tops == 1 or named or holders.total() > len(holders) ** 2)


def _typed(path: str) -> str:
    """Returns a path as short as a user would type it; an address is."""
    if isinstance(as_location(path), StoredPath):
        return path
    here = os.path.relpath(path)
    return path if here.startswith("..") else here


def _some(names: list[str]) -> str:
    return ", ".join(names[:_TOLD]) + (f" and {len(names) - _TOLD} more" if len(names) > _TOLD else "")
