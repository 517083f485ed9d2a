"""The hashes against integers of Python, and against values written down: another constant is another dataset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faceshards.hashing import mix, splitmix64

pytestmark = pytest.mark.numeric

MASK = (1 << 64) - 1


def mixed(x):
    """Steele, Lea and Flood's finalizer in Python's integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def hashed(seed, purpose, value):
    start = (4 * seed + purpose) * 0xD1342543DE82EF95
    return mixed(mixed(value * 0x9E3779B97F4A7C15 + start & MASK))


@given(st.lists(st.integers(0, MASK), max_size=20))
def test_mix_is_the_finalizer(values):
    assert mix(np.array(values, np.uint64)).tolist() == [mixed(x) for x in values]


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 3), st.lists(st.integers(0, (1 << 63) - 1), max_size=20))
def test_splitmix64_is_the_formula(seed, purpose, values):
    assert splitmix64(seed, purpose, np.array(values, np.int64)).tolist() == [hashed(seed, purpose, x) for x in values]


def test_mix_is_what_it_was():
    """The first three are the first outputs of splitmix64 from state 0, as other implementations print them."""
    want = [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0x5692161D100B05E5,
        0xB4D055FCF2CBBD7B,
    ]
    got = mix(np.array([k * 0x9E3779B97F4A7C15 & MASK for k in (1, 2, 3)] + [1, MASK], np.uint64))
    assert got.tolist() == want


@pytest.mark.parametrize(
    ("seed", "purpose", "want"),
    [
        (0, 0, [0x0000000000000000, 0x48218226FF3CD4BF, 0x21FBE830523C4453, 0xD731B6158CB3C355]),
        (0, 1, [0x1057AB534FC11138, 0x10A652055018074C, 0x532E647B2E8A3732, 0xC080FA904857B74A]),
        (0, 2, [0x18521B5DC1206C54, 0x9059ABEC3A23BB9B, 0x38DE7C5B5DA8491F, 0x9C49500BDEB059D9]),
        (0, 3, [0x40A7ADD2A2046521, 0x9EA9BC5B79DF2468, 0x68C3519B5294F356, 0xC068EC6B46B90FA3]),
        (1, 0, [0xBFDF423EDA077E5B, 0x49F844795CDDDA94, 0x8637C98FF0824C7A, 0x33AFF1CA6B08B24B]),
        ((1 << 63) - 1, 2, [0xCC4E42CE16C3D8BF, 0x514C00BC6FA7A9F7, 0x51705EDE9A00DBED, 0xE873EE604724DE8A]),
    ],
)
def test_splitmix64_is_what_it_was(seed, purpose, want):
    values = np.array([0, 1, 4_235_242, (1 << 63) - 1], np.int64)
    got = splitmix64(seed, purpose, values)
    assert got.dtype == np.uint64
    assert got.tolist() == want
