"""The guard of pickles: what it lets through, and what it refuses before any of it is carried out."""

from __future__ import annotations

import io
import pickle

import pytest

from faceshards.formats.pickles import Guard, RefusedError, shown

GUARD = Guard(
    kind="list",
    holds="a list holds numbers",
    names={("numpy", "dtype")},
    opcodes={"PROTO", "EMPTY_LIST", "BINPUT", "LONG_BINPUT", "BININT1", "APPEND", "GLOBAL", "STOP"},
)


@pytest.mark.parametrize("source", [bytes, io.BytesIO])
def test_what_is_needed_goes_through(source):
    walked = list(GUARD.walk(source(pickle.dumps([7], protocol=2))))
    assert walked == [
        ("PROTO", 2),
        ("EMPTY_LIST", None),
        ("BINPUT", 0),
        ("BININT1", 7),
        ("APPEND", None),
        ("STOP", None),
    ]
    assert ("GLOBAL", "numpy dtype") in GUARD.walk(b"\x80\x02cnumpy\ndtype\n.")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02}.", "its pickle uses EMPTY_DICT, which no list needs"),
        (b"\x80\x02cos\nsystem\n.", "it asks for os.system; a list holds numbers"),
        (b"\x80\x02ios\nsystem\n.", "it asks for os.system; a list holds numbers"),
        (b"\x80\x02c\x1b[2Jnumpy\ndtype\n.", "it asks for ??2Jnumpy.dtype; a list holds numbers"),
        (b"\x80\x02]q\x03.", "it counts what it puts away wrongly"),  # the third opcode puts the fourth value away
        (b"\x80\x02]r\xff\xff\xff\x0f.", "it counts what it puts away wrongly"),
    ],
)
def test_what_is_not_needed_is_refused(data, message):
    with pytest.raises(RefusedError) as failure:
        list(GUARD.walk(data))
    assert str(failure.value) == message


@pytest.mark.parametrize("data", [b"", b"\x80\x02]", b"\x80\x02]\xff"])
def test_damage_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"pickle exhausted before seeing STOP|opcode .* unknown"):
        list(GUARD.walk(data))


def test_names_are_compared_part_by_part_and_only_if_they_are_texts():
    deep: tuple = ()
    for _ in range(200_000):
        deep = (deep,)  # its hash would end the process
    GUARD.check_name("numpy", "dtype")
    for module, name in (("nump", "y.dtype"), ("numpy.dtype", ""), ("", "numpy.dtype")):
        with pytest.raises(RefusedError, match=r"it asks for .*; a list holds numbers"):
            GUARD.check_name(module, name)
    for module, name in ((deep, "dtype"), ("numpy", deep), (None, "dtype"), ("numpy", b"dtype")):
        with pytest.raises(RefusedError, match="it asks for something whose name is no text"):
            GUARD.check_name(module, name)


def test_a_text_is_shown_short_and_harmless():
    assert shown("|u1\x1b[31m\nx") == "|u1??31m?x"
    assert shown("a" * 100) == "a" * 80
    assert shown("abc", 2) == "ab"
