"""What docs/api.md and examples/ show is run."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import faceshards
from faceshards.dataset.manifest import Manifest
from faceshards.formats.verification_bin import write_bin
from tests.faceshards.cli.test_pages import shapes
from tests.pipelines.build_fixtures import ROOT, read_rec

EXAMPLES = ROOT / "examples"


class Shapes(doctest.OutputChecker):
    """Holds what is printed to the page, but for what another set has otherwise."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        mine, others = (shapes(re.sub(r"\b[0-9a-f]{12}\b", "#", text).splitlines()) for text in (want, got))
        return mine == others


@pytest.mark.slow
def test_the_page_of_the_api(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "synthetic").symlink_to(tiny_source)
    write_bin(tmp_path / "lfw.bin", [image for _, image in read_rec(tiny_source / "train.rec").values()][:2], [True])
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, "api.md", "docs/api.md", 0)
    said: list[str] = []
    found = doctest.DocTestRunner(Shapes()).run(test, out=said.append)
    assert found.failed == 0, "".join(said)
    assert found.attempted > 15


def run(script: str, *arguments: object) -> None:
    """Runs an example in this process, as a command with arguments."""
    sys.argv[:] = [script, *map(str, arguments)]
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_look_at_a_manifest(tiny_dataset: Manifest, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [])
    run("look_at_a_manifest.py", tiny_dataset.path)
    said = capsys.readouterr().out
    assert said.startswith(f"<Dataset 'tiny': {len(faceshards.open(tiny_dataset.path))} images of 12 identities")
    words = [line.split() for line in said.splitlines()]
    for reason, count in tiny_dataset.totals["dropped"].items():
        assert not count or any(line[:2] == [reason, str(count)] for line in words)
    assert "stands for it in the shards" in said
    with pytest.raises(SystemExit, match="Error: none: no dataset published there"):
        run("look_at_a_manifest.py", "none")
    with pytest.raises(SystemExit, match="usage: "):
        run("look_at_a_manifest.py")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_torch_dataloader(workers: int, tiny_dataset: Manifest, monkeypatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    monkeypatch.syspath_prepend(str(EXAMPLES))  # workers import it too
    example = importlib.import_module("torch_dataloader")
    dataset = example.Shards(str(tiny_dataset.path), 8, seed=1, threads=1)
    loader = example.make_loader(dataset, workers)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        got = [(images.numpy(), labels.numpy()) for images, labels in loader]
        want = []
        for rank in range(workers or 1):
            with faceshards.Stream(tiny_dataset, 8, rank, workers or 1, seed=1, threads=1) as stream:
                want.append(list(stream.batches(epoch)))
        # A DataLoader takes batches from its workers in turn.
        in_turn = [batch for together in zip(*want, strict=True) for batch in together]
        assert len(got) == len(in_turn) > 5
        for (images, labels), (others, their_labels) in zip(got, in_turn, strict=True):
            np.testing.assert_array_equal(images, others)
            np.testing.assert_array_equal(labels, their_labels)
