"""What docs/clusters.md shows is typed: a scheduler and workers by hand, and the scripts for SLURM."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.storage.location import StoredPath
from pipelines.config import BuildConfig
from tests.faceshards.test_stored_dataset import upload
from tests.object_store import free_ports
from tests.pipelines.build_fixtures import ROOT, kill_group, run_build
from tests.test_docs import refused

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
FILES = ROOT / "examples" / "cluster"
SCRIPTS = sorted(FILES.glob("*.sbatch"))


def block(start: str) -> str:
    """Returns the lines that the page shows together, the first of which begins so."""
    (found,) = re.findall(rf"(?<=\n\n)    ({re.escape(start)}.*\n(?:    .*\n)*)", PAGE, re.MULTILINE)
    return str(found)


def bash(text: str) -> list[str]:
    """Returns the command by which bash runs text after cluster.env."""
    return ["bash", "-euc", f"{block('. examples')}{text}"]


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a certificate that was made as the page says."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TLS", str(tmp_path / "tls"))
    subprocess.run(bash(block("mkdir -p -m 700 $TLS")), check=True, capture_output=True)
    assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o077 == 0
    return tmp_path / "tls"


@pytest.fixture
def cluster(bucket: StoredPath, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a scheduler with workers, started as the page says; they know the bucket."""
    (port,) = free_ports(1)
    monkeypatch.setenv("BUCKET", str(bucket))
    monkeypatch.setenv("SCHEDULER", f"tls://127.0.0.1:{port}")
    started = []
    with open(tmp_path / "log", "wb") as log:
        try:
            for command in ("dask scheduler", "dask worker"):  # who comes first waits for the other
                words = block(command).replace("/tmp", str(tmp_path))
                started.append(subprocess.Popen(bash(words), start_new_session=True, stdout=log, stderr=log))
            yield os.environ["SCHEDULER"]
        finally:
            for process in started:
                kill_group(process)


def built(start: str, tiny_source: Path, bucket: StoredPath, tmp_path: Path) -> Manifest:
    """Returns what the page's build makes of the tiny source."""
    upload(tiny_source, bucket / "raw" / "mine")
    words = block(start).replace("/shared", str(tmp_path))
    done = subprocess.run(bash(words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text(errors="replace")[-3000:]
    (out,) = re.findall(r"--out \$BUCKET/(\S+)", words)
    found = Manifest(bucket / out)
    assert list(verify(found)) == []
    return found


@pytest.mark.slow
def test_by_hand(cluster: str, tiny_source: Path, bucket: StoredPath, tmp_path: Path) -> None:
    found = built("faceshards build --source $BUCKET/raw/mine --out $BUCKET/sets/mine", tiny_source, bucket, tmp_path)
    assert found.fingerprint == run_build(tiny_source, tmp_path / "local", BuildConfig()).fingerprint
    said = (tmp_path / "log").read_text(errors="replace")
    assert cluster in said
    assert "tcp://" not in said


@pytest.mark.slow
def test_by_hand_without_a_shared_disk(cluster: str, tiny_source: Path, bucket: StoredPath, tmp_path: Path) -> None:
    found = built("faceshards build --source $BUCKET/raw/mine --out $BUCKET/sets/other", tiny_source, bucket, tmp_path)
    assert found.fingerprint == run_build(tiny_source, tmp_path / "local", BuildConfig()).fingerprint


@pytest.mark.parametrize("script", [*SCRIPTS, FILES / "cluster.env"], ids=lambda path: path.name)
def test_bash_reads_the_scripts(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert not re.search(r"(?i)secret_access_key=|access_key_id=", script.read_text())


def shown() -> Iterator[tuple[str, list[str]]]:
    """Yields each script that is shown with arguments, on the page or in its own first lines, and these."""
    texts = [PAGE, *(re.sub(r" \\\n#? *", " ", path.read_text().replace("\n#  ", "\n  ")) for path in FILES.iterdir())]
    for name, words in re.findall(r"^ .*examples/cluster/(\w+\.(?:sbatch|py)) (.*)$", "\n".join(texts), re.MULTILINE):
        yield name, shlex.split(words)


def test_what_follows_the_scripts_are_commands() -> None:
    found = list(shown())
    for name, words in found:
        rest = words[words.index("--") + 1 :] if name.endswith(".py") else words
        assert refused([name.partition(".")[0].removeprefix("slurm_"), *rest]) == "", (name, words)
    assert sorted(name for name, _ in found) == sorted(2 * ["build.sbatch", "slurm_build.py", "train.sbatch"])


@pytest.mark.slow
def test_the_script_of_a_job_by_dask_jobqueue(certificate: Path) -> None:
    if find_spec("dask_jobqueue") is None:  # imported here it would take this process's Ctrl-C for itself
        pytest.skip("no dask-jobqueue: pip install dask-jobqueue")
    options = "--show --cores 3 --memory 6GB --sbatch=--partition=cpu"
    words = bash(f"exec {shlex.quote(sys.executable)} examples/cluster/slurm_build.py {options}")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --cpus-per-task=3\n" in done.stdout
    assert "#SBATCH --partition=cpu\n" in done.stdout
    (worker,) = re.findall(r"^.*dask_worker (tls://.*)$", done.stdout, re.MULTILINE)
    assert "--nthreads 1 " in worker
    assert "--nworkers 3 " in worker
    assert f"--tls-key {certificate}/key.pem" in worker
