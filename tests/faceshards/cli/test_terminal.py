"""What is printed, logged and said of failures: names from disks and files do not move a terminal's cursor."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle

import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.cli.terminal import LogFormatter, _Shown, echo
from faceshards.errors import harmless, one_line

EVIL = "e\x1b[2J\x9b1m\u202e\x7f\rl"
SHOWN = r"e\x1b[2J\u009b1m\u202e\u007f\x0dl"


def test_control_characters_become_their_codes():
    assert harmless(EVIL) == SHOWN
    assert harmless("Zoë 李\tあ\n\u200d") == "Zoë 李\tあ\n\u200d"
    assert harmless(os.fsdecode(b"n\xff")) == r"n\udcff"
    assert one_line("a\nb") == r"a\nb"


def test_json_stays_json_and_says_the_same(capsys):
    echo(json.dumps([EVIL], ensure_ascii=False))
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == [EVIL]


def test_a_message_is_one_line_and_a_traceback_stays_below_it():
    def formatted(*message, **options):
        record = logging.LogRecord("x", logging.WARNING, "", 1, message[0], message[1:], options.get("exc_info"))
        return LogFormatter("%(levelname)s %(message)s").format(record)

    assert formatted("%s: gone", f"{EVIL}\nERROR forged") == rf"WARNING {SHOWN}\nERROR forged: gone"
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        lines = formatted("why", exc_info=(type(error), error, error.__traceback__)).splitlines()
    assert lines[:2] == ["WARNING why", "Traceback (most recent call last):"]
    assert lines[-1] == f"ValueError: {SHOWN}"


def test_bytes_on_their_way_to_a_terminal():
    out = io.BytesIO()
    data = f"Zoë,{EVIL}\n".encode()
    stream = _Shown(out)
    for start in range(len(data)):  # within characters too
        assert stream.write(data[start : start + 1]) == 1
    assert out.getvalue().decode() == f"Zoë,{SHOWN}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["manifest", "summary", "{}"],
        ["manifest", "diff", "{}", "{}"],
        ["manifest", "overlap", "{}", "--set", "{}"],
        ["build", "--source", "{}", "--out", "{}/out"],
        ["build", EVIL, "--out", "{}/out"],
        [EVIL],
        ["manifest", EVIL],
        ["make-bin", "{}", "{}", "{}"],
        ["build", "synthetic", "--set", f"{EVIL}=1", "--out", "{}/out"],
    ],
)
def test_a_failure_about_such_a_file(tmp_path, arguments):
    place = f"{tmp_path}/{EVIL}"
    result = CliRunner().invoke(main, [argument.format(place) for argument in arguments])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    assert not set(result.output) & set("\x1b\x9b\u202e\x7f\r")
    assert r"e\x1b[2J" in result.output


def test_a_set_of_such_a_name(tmp_path):
    path = tmp_path / f"{EVIL}.bin"
    path.write_bytes(pickle.dumps(([b"x", b"y"], [True]), protocol=2))
    result = CliRunner().invoke(main, ["eval", "--embeddings", str(tmp_path / "none.npy"), "--set", str(path)])
    assert result.exit_code
    assert not set(result.output) & set("\x1b\x9b\u202e\x7f\r")
