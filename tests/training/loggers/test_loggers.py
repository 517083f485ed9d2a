"""Loggers for real: wandb offline, MLflow on a folder, both after an interruption, and what fails in them."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faceshards.errors import ConfigError, FaceshardsError
from training.loggers.base import Run
from training.loggers.registry import LOGGERS, check_loggers, open_loggers
from training.metrics import RunLog

CONFIG = {"lr": 0.1, "margin": (1.0, 0.0, 0.4), "backbone": "mbf"}


def tell(out: Path, name: str, steps, start: int = 0) -> None:
    """Tells a logger the loss of steps, which is their number."""
    (logger,) = open_loggers([name], Run(out, CONFIG, start)).values()
    for step in steps:
        logger.write(step, {"loss": float(step), "accuracy/a#b": 0.5})
    logger.close()


def test_mlflow_keeps_one_run_that_goes_on(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tell(tmp_path, "mlflow", [1, 2, 3])
    tell(tmp_path, "mlflow", [3, 4], start=2)
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("faceshards").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "margin": "(1.0, 0.0, 0.4)", "backbone": "mbf"}
    told = [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, "loss")]
    assert told == [(1, 1.0), (2, 2.0), (3, 3.0), (3, 3.0), (4, 4.0)]
    assert run.data.metrics["accuracy/a_b"] == 0.5
    tell(tmp_path, "mlflow", [1])  # a run that begins is a new one
    assert len(client.search_runs([run.info.experiment_id])) == 2


def log_records(data: bytes) -> Iterator[bytes]:
    """Yields the records of a log in LevelDB's format, after the 7 bytes of wandb's own.

    Source: leveldb/doc/log_format.md: blocks of 32,768 bytes; checksum (4), length (2), type (1: whole, 2 to 4: parts).
    """
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_offline_keeps_one_run_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell(tmp_path, "wandb", [1, 2])
    tell(tmp_path, "wandb", [2, 3], start=1)
    until = time.monotonic() + 30  # wandb's own process writes the end of a log after finish() has returned
    while len((said := offline(tmp_path))[0]) < 4 and time.monotonic() < until:
        pass
    found, runs = said
    assert found == [("1", "1"), ("2", "2"), ("2", "2"), ("3", "3")]
    assert runs == {(tmp_path / "wandb" / "run_id").read_text().strip()}


def offline(out: Path) -> tuple[list[tuple[str, str]], set[str]]:
    """Returns step and loss of each line of the logs that wandb left, and the runs they are of."""
    from wandb.proto import wandb_internal_pb2

    found, runs = [], set()
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            runs |= {record.run.run_id} - {""}
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found += [(items["step"], items["loss"])] if "loss" in items else []
    return sorted(found), runs


def test_names_that_are_none(monkeypatch):
    check_loggers([])
    check_loggers(["tensorboard", "wandb", "mlflow"])
    with pytest.raises(ConfigError, match="loggers: 'comet' is not one of tensorboard, wandb, mlflow"):
        check_loggers(["comet"])
    with pytest.raises(ConfigError, match="loggers: 'wandb' is there twice"):
        check_loggers(["wandb", "wandb"])
    monkeypatch.setitem(LOGGERS, "wandb", (LOGGERS["wandb"][0], "a_package_that_is_not_here"))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_here is not installed"):
        check_loggers(["wandb"])


class Service:
    """A logger that ends after one step."""

    def __init__(self, told: list[int]) -> None:
        self.told = told

    def write(self, step, values):
        self.told.append(step)
        if len(self.told) == 2:
            raise ConnectionError("the server is\naway")

    def close(self):
        self.told.append(0)


def test_one_that_fails_is_left_and_the_run_goes_on(tmp_path, caplog):
    told: list[int] = []
    log = RunLog(tmp_path, 9, 3, 8, 1, 0, loggers={"service": Service(told)})
    for step in range(1, 5):
        log.step(step, 1.0, 0.1, 1.0)
    log.close()
    assert told == [1, 2]
    assert caplog.text.count("service is told no more: the server is away; metrics.jsonl goes on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_one_that_cannot_start_is_one_line_and_closes_the_others(tmp_path, monkeypatch):
    told: list[int] = []

    def refuse(run):
        raise ValueError("no\nkey")

    monkeypatch.setitem(LOGGERS, "service", (lambda run: Service(told), "json"))
    monkeypatch.setitem(LOGGERS, "refusing", (refuse, "json"))
    with pytest.raises(FaceshardsError, match=r"^loggers: refusing: no key$"):
        open_loggers(["service", "refusing"], Run(tmp_path, {}, 0))
    assert told == [0]
