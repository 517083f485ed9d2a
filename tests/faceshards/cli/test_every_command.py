"""What holds for every command that there is: help, JSON, exit codes, Ctrl-C, progress."""

from __future__ import annotations

import _thread
import fcntl
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import pipelines.wanted
from faceshards import progress
from faceshards.cli import paths
from faceshards.cli.command import Command, goes_on
from faceshards.cli.groups import LazyCommands
from faceshards.cli.main import main
from faceshards.cli.paths import LocalPath
from faceshards.dataset.manifest import Manifest
from tests.pipelines.build_fixtures import ROOT
from tests.test_docs import refused


def walk(group: LazyCommands, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], LazyCommands]]:
    """Yields what is typed for each command, groups too, and the group that has it."""
    for name in group.places:
        yield (*before, name), group
        found = group.get_command(click.Context(group), name)
        if isinstance(found, LazyCommands):
            yield from walk(found, (*before, name))


EVERY = dict(walk(main))
each = pytest.mark.parametrize("words", EVERY, ids=" ".join)


def command(words: tuple[str, ...]) -> click.Command:
    group = EVERY[words]
    found = group.get_command(click.Context(group), words[-1])
    assert found is not None
    return found


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def typed(line: str) -> list[str]:
    """Returns the words of a line that the command gets; the shell keeps where its output goes."""
    words = shlex.split(line)[1:]
    return list(takewhile(lambda word: word not in ("<", ">"), words))


@each
def test_it_has_an_example_and_its_place_in_the_list(words: tuple[str, ...]) -> None:
    found, short = command(words), EVERY[words].places[words[-1]][1]
    examples = re.findall(r"^      (faceshards .*)$", (found.help or ""), re.MULTILINE) or re.findall(
        r"^  (faceshards .*)$", (found.help or ""), re.MULTILINE
    )
    assert any(line.split()[1 : 1 + len(words)] == list(words) for line in examples)
    assert short == found.get_short_help_str(1000)
    assert not {line: why for line in examples if (why := refused(typed(line)))}
    listed = call(*words[:-1], "--help").stdout.splitlines()
    assert any(line.split() == [words[-1], *short.split()] for line in listed)  # whole, not cut
    assert call(*words, "-h").stdout == call(*words, "--help").stdout != ""


@each
def test_it_prints_json(words: tuple[str, ...]) -> None:
    found = command(words)
    assert isinstance(found, click.Group) or any("--json" in option.opts for option in found.params)


HELP = """
import json, sys
from faceshards.cli.main import main
heavy = ["dask", "mindspore", "pandas", "cv2", "numpy", "pyarrow", "yaml", "tqdm"]
try:
    main(sys.argv[1:])
except SystemExit:
    print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        ((), ()),
        *(((name,), ()) for name in ("manifest", "train", "eval", "embed", "compare", "export", "ijb")),
        (("build",), ("numpy", "pyarrow", "yaml", "tqdm")),
    ],
)
def test_help_imports_little(words: tuple[str, ...], needs: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *words, "--help"], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert set(json.loads(done.stderr)) <= {*needs}


def test_json_is_whole_and_alone(tiny_dataset: Manifest, tmp_path: Path) -> None:
    path = tiny_dataset.path
    for arguments in (
        ("datasets",),
        ("settings",),
        *(("manifest", name, path) for name in ("summary", "identities", "drops", "conflicts", "links", "shards")),
        ("manifest", "verify", path),
        ("manifest", "upgrade", path),
        ("manifest", "image", path, "0"),
        ("manifest", "query", path, "SELECT count(*) AS n FROM images"),
        ("manifest", "diff", path, path),
        ("manifest", "report", path, "--out", tmp_path / "page.html"),
        ("export-data", path, tmp_path / "folder", "--to", "folder", "--workers", "1"),
        ("train", "synthetic", "--data", path, "--out", tmp_path / "run", "--explain"),
    ):
        result = call(*arguments, "--json")
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)
        assert "\r" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("build", "casio", "--out", "o"), "unknown dataset 'casio'; known: casia, "),
        (("build", "casia", "--out", "o", "--set", "colour=red"), "--set: unknown key 'colour'"),
        (("build", "casia", "--out", "o", "--set", "seed=-1"), "--set: seed: -1 is outside 0.."),
        (("build", "casia", "--out", "o", "--config", "none.yaml"), "none.yaml: No such file or directory"),
        (("train", "casio", "--data", "d", "--out", "o"), "no recipe 'casio'; known recipes: casia, "),
        (("train", "casio", "--explain"), "no recipe 'casio'"),
        (("train", "none.yaml", "--data", "d", "--out", "o"), "none.yaml: No such file or directory"),
        (("train", "casia", "--data", "d", "--out", "o", "--set", "colour=red"), "unknown key 'colour'"),
        (("train", "casia", "--data", "d", "--out", "o", "--set", "lr=-1"), "lr: -1.0 is outside 0.."),
        (("train", "casia", "--data", "d", "--out", "o", "--set", "margin=arc"), "margin: 'arc' is not one of"),
    ],
)
def test_names_keys_and_values_that_are_none_are_wrong_usage(arguments: tuple[str, ...], line: str) -> None:
    with CliRunner().isolated_filesystem():
        result = call(*arguments)
        assert os.listdir() == []
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--source", "none", "--out", "o"),
        ("build", "--source", "none.rec", "--out", "o"),
        ("build", "--source", "none.tar", "--out", "o"),
        ("train", "synthetic", "--data", "none", "--out", "o"),
        ("eval", "--model", "none.onnx", "--set", "none.bin"),
        ("eval", "--embeddings", "none.npy", "--set", "SET"),
        ("eval", "--model", "none", "--set", "SET"),
        ("eval", "--model", "none.onnx", "--set", "SET"),
        ("compare", "a.jpg", "b.jpg", "--model", "none"),
        ("embed", "none.bin", "o", "--model", "none.pth"),
        ("export", "none.safetensors", "o.onnx"),
        ("make-bin", "none", "none.txt", "o.bin"),
        ("make-bin", ".", "none.txt", "o.bin"),
        ("ijb", "none", "--embeddings", "none.npy"),
        ("export-data", "none", "o", "--to", "folder"),
        ("split", "none", "--out", "o"),
        *(("manifest", name, "none") for name in ("summary", "verify", "upgrade", "drops", "shards")),
        ("manifest", "query", "none", "FROM images"),
        ("manifest", "overlap", "DATASET", "--set", "none.bin"),
        ("manifest", "diff", "DATASET", "none"),
    ],
    ids=" ".join,
)
def test_what_is_missing_is_said_to_be(arguments: tuple[str, ...], tiny_dataset: Manifest, verification: Path) -> None:
    places = {"DATASET": str(tiny_dataset.path), "SET": str(verification)}
    with CliRunner().isolated_filesystem():
        result = call(*(places.get(word, word) for word in arguments))
        assert os.listdir() == []
    assert result.exit_code == 1, result.output
    assert re.search("none[^ ]*: .*no such (file|folder)", result.stderr, re.IGNORECASE), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Errno" not in result.stderr


@pytest.fixture(scope="module")
def verification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verification set of gray pictures."""
    import cv2
    import numpy as np

    from faceshards.formats.verification_bin import write_bin

    out = tmp_path_factory.mktemp("set") / "gray.bin"
    shades = np.random.default_rng(0).integers(0, 256, 80)
    images = [cv2.imencode(".png", np.full((112, 112, 3), shade, np.uint8))[1].tobytes() for shade in shades]
    write_bin(out, images, np.arange(40) % 4 < 2)
    return out


@pytest.mark.parametrize("words", [("identities",), ("drops",), ("links",), ("conflicts",), ("conflicts", "--pairs")])
def test_an_identity_that_is_none(words: tuple[str, ...], tiny_dataset: Manifest) -> None:
    result = call("manifest", *words, tiny_dataset.path, "--label", "nosuch")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tiny_dataset.path}: no identity 'nosuch' (label_original) was scanned\n"
    assert call("manifest", *words, tiny_dataset.path, "--label", "3").exit_code == 0


@pytest.mark.parametrize(("restart", "without"), [((), ""), (("--restart",), " without --restart")])
def test_ctrl_c(restart: tuple[str, ...], without: str) -> None:
    @click.command(cls=Command, go_on=goes_on)
    @click.option("--restart", is_flag=True)
    def stop(restart: bool) -> None:
        _thread.interrupt_main()

    result = CliRunner().invoke(stop, restart)
    assert result.exit_code == 130
    assert result.stderr == f"Error: interrupted; the same command{without} goes on where it stopped\n"


MODEL = """
import os, signal, sys
import click
from faceshards.cli.command import ModelCommand, goes_on

@click.command(cls=ModelCommand, go_on=goes_on)
def stop():
    assert "numpy" not in sys.modules
    import mindspore

    @mindspore.jit
    def add(x):
        return x + 1

    add(mindspore.Tensor([1.0])).asnumpy()
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        add(mindspore.Tensor([1.0])).asnumpy()

stop([])
"""


@pytest.mark.slow
def test_ctrl_c_while_a_model_runs(tmp_path: Path) -> None:
    """MindSpore has put its own handler in place by then, which would end the process by SIGTERM."""
    (tmp_path / "stop.py").write_text(MODEL)  # MindSpore reads the source
    done = subprocess.run([sys.executable, tmp_path / "stop.py"], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "Error: interrupted; the same command goes on where it stopped"


def test_ctrl_c_before_a_command_runs() -> None:
    class Slow(LazyCommands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            _thread.interrupt_main()  # as if it came while the command is imported
            return None

    result = CliRunner().invoke(Slow(places={}), ["build"])
    assert (result.exit_code, result.stderr) == (130, "Error: interrupted\n")


def test_ctrl_c_while_a_set_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bar(name: str, total: int | None, quiet: bool) -> Any:
        shown = progress.bar(name, total, quiet)
        shown.update = lambda count: _thread.interrupt_main()
        return shown

    monkeypatch.setattr(pipelines.wanted, "bar", bar)
    words = ("build", "synthetic", "--data-root", tmp_path / "raw", "--out", tmp_path / "out", "--workers", "1")
    result = call(*words)
    assert result.exit_code == 130
    assert result.stderr == "Error: interrupted; the same command renders synthetic again from the beginning\n"
    assert not (tmp_path / "raw" / "synthetic").exists()


def test_bars_are_lines_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("embed", 8, quiet=False) as shown:
        shown.update(8)
    assert capsys.readouterr().err == ""  # over before the first line is due
    monkeypatch.setattr(progress, "_LINE", 0)
    with progress.bar("embed", 8, quiet=False) as shown:
        for _ in range(8):
            shown.update()
    lines = capsys.readouterr().err
    assert "\r" not in lines
    assert "\x1b" not in lines
    assert re.match(r"embed: 100%\|#+\| 8/8 ", lines.splitlines()[-1])
    assert all(line.startswith("embed: ") for line in lines.splitlines())


def test_bars_move_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.bar("embed", 8, quiet=False) as shown:
            shown.update(8)
        os.set_blocking(master, False)
        said = b""
        with suppress(BlockingIOError):
            while True:
                said += os.read(master, 4096)
    os.close(master)
    assert b"\rembed: 100%" in said


def test_make_eval_without_sets_says_where_they_go() -> None:
    calm = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(["make", "eval", "DATASET=nosuch"], cwd=ROOT, capture_output=True, text=True, env=calm)
    assert done.returncode == 2
    assert done.stderr.startswith("no verification set: put .bin files into data/raw/nosuch, or say SETS=")
    assert done.stdout == ""


@each
def test_an_address_in_a_bucket_is_no_folder_called_s3(words: tuple[str, ...]) -> None:
    for param in command(words).params:
        if not isinstance(param.type, click.Path):
            continue
        in_buckets = (paths.FETCHED, paths.MODEL, paths.OUT_FILE, paths.OUT_PAGE, paths.OUT_FOLDER)
        assert isinstance(param.type, LocalPath) or param.type in in_buckets, f"{param.name} takes any text for a path"
        if isinstance(param.type, LocalPath):
            with pytest.raises(click.BadParameter, match="s3://faces/x is in a bucket, and has to be on a disk here"):
                param.type.convert("s3://faces/x", param, None)
