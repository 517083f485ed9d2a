"""What a run tells while it goes: metrics.jsonl, TensorBoard's events and text, for known steps on a set clock."""

from __future__ import annotations

import json
import logging
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from faceshards.errors import FaceshardsError
from training import metrics
from training.loggers.base import Run
from training.loggers.registry import open_loggers

IMAGES = 64  # of a step


class Clock:
    """Stands in for the module time: it goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(metrics, "time", found)
    monkeypatch.setattr(metrics, "peak_memory", lambda: 3 << 29)  # 1.5 GiB
    return found


def record(out, total=10, every=4, start=0, pending=()):
    """Returns the record of a run of `total` steps, five an epoch."""
    loggers = {} if out is None else open_loggers(["tensorboard"], Run(out, {}, start))
    return metrics.RunLog(out, total, 5, IMAGES, every, start, pending, loggers)


def go(progress, clock, steps, seconds=0.5, scaling=None):
    """Does steps of half a second; the loss of step n is n, its learning rate n / 100, its gradient's norm n / 10."""
    for step in steps:
        clock.now += seconds
        progress.step(step, float(step), step / 100, step / 10, scaling)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def events(out):
    """Returns (step, name, value) of every scalar in the event files, in their order.

    Source: TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4).
    """
    found = []
    for path in sorted((out / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def test_a_line_says_what_was_done_since_the_last(tmp_path, clock):
    progress = record(tmp_path)
    go(progress, clock, range(1, 11))
    progress.close()
    same = {"images_per_second": IMAGES / 0.5, "peak_memory": 3 << 29}
    assert lines(tmp_path) == [
        {"step": 4, "loss": 2.5, "lr": 0.04, "gradient_norm": 0.4, **same},
        {"step": 8, "loss": 6.5, "lr": 0.08, "gradient_norm": 0.8, **same},
        {"step": 10, "loss": 9.5, "lr": 0.1, "gradient_norm": 1.0, **same},  # the last step always has one
    ]


def test_text_says_the_same_and_how_long_it_will_take(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, "training")
    progress = record(tmp_path, total=7205)
    go(progress, clock, range(1, 9))
    progress.close()
    assert caplog.messages == [
        "step 4/7205  epoch 0.80  loss 2.5000  lr 0.04000  128 images/s  ETA 1:00:00  peak 1.50 GiB",
        "step 8/7205  epoch 1.60  loss 6.5000  lr 0.08000  128 images/s  ETA 0:59:58  peak 1.50 GiB",
    ]


def test_tensorboard_has_every_number_of_a_line(tmp_path, clock):
    progress = record(tmp_path)
    go(progress, clock, range(1, 5), scaling=(1024.0, 2))
    progress.write(4, {"accuracy/lfw": 0.75})
    progress.close()
    want = [(line["step"], name, value) for line in lines(tmp_path) for name, value in line.items() if name != "step"]
    assert len(want) == 8
    assert events(tmp_path) == [(step, name, np.float32(value)) for step, name, value in want]


def test_a_loss_scale_and_skipped_steps_are_told_in_mixed_precision(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, "training")
    progress = record(tmp_path, every=1)
    go(progress, clock, [1])
    go(progress, clock, [2], scaling=(1.0, 0))
    progress.step(3, 3.0, 0.03, math.inf, (32768.0, 1))  # skipped: its norm is no number of JSON
    progress.close()
    assert [(line.get("loss_scale"), line.get("skipped_steps")) for line in lines(tmp_path)] == [
        (None, None),
        (1.0, 0),
        (32768.0, 1),
    ]
    assert ["gradient_norm" in line for line in lines(tmp_path)] == [True, True, False]
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    assert "loss scale" not in caplog.messages[0]
    assert caplog.messages[2].endswith("  loss scale 32,768, 1 steps skipped")


def test_images_a_second_are_of_training_alone(tmp_path, clock):
    progress = record(tmp_path, every=2)
    go(progress, clock, [1, 2])
    clock.now += 30  # a verification
    progress.pause(30)
    go(progress, clock, [3, 4], seconds=0.25)
    go(progress, clock, [5, 6], seconds=1)  # the pause counts once
    progress.close()
    assert [line["images_per_second"] for line in lines(tmp_path)] == [IMAGES / 0.5, IMAGES / 0.25, IMAGES / 1]


def test_a_run_that_goes_on_has_the_lines_of_one_that_never_stopped(tmp_path, clock):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    progress = record(whole)
    go(progress, clock, range(1, 11))
    progress.close()
    progress = record(parts)
    go(progress, clock, range(1, 7))
    pending = progress.pending  # of the checkpoint after step 6
    go(progress, clock, range(7, 10))  # and what comes after it is lost
    progress.close()
    assert pending == (5.0, 6.0)
    clock.now += 5000
    progress = record(parts, start=6, pending=pending)
    assert progress.pending == pending
    go(progress, clock, range(7, 11))
    assert progress.pending == ()
    progress.close()
    assert lines(parts) == lines(whole)
    assert [step for step, name, _ in events(whole) if name == "loss"] == [4, 8, 10]


def test_images_a_second_are_those_of_this_process(tmp_path, clock, caplog):
    """What an earlier process did in the steps of a line took no time of this one's."""
    caplog.set_level(logging.INFO, "training")
    progress = record(tmp_path, start=7, total=16, pending=(5.0, 6.0, 7.0))
    go(progress, clock, [8], seconds=2)
    progress.close()
    assert (lines(tmp_path)[0]["loss"], lines(tmp_path)[0]["images_per_second"]) == (6.5, IMAGES / 2)
    assert "ETA 0:00:16" in caplog.text  # eight steps of two seconds


def test_lines_beyond_the_checkpoint_are_forgotten(tmp_path):
    before = '{"step": 2, "loss": 1}\n{"step": 3, "accuracy/lfw": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(before + '{"step": 4, "loss": 1}\n{"step": 6, "lo')
    record(tmp_path, start=3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == before
    record(tmp_path).close()  # a new run
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_folder_that_takes_no_file_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FaceshardsError, match=r"^\S*/metrics\.jsonl: Is a directory$"):
        record(tmp_path)


def test_events_that_cannot_be_written_do_not_hold_a_run_up(tmp_path, clock, caplog):
    progress = record(tmp_path, total=100, every=1)
    worker = progress._loggers["tensorboard"]._writer.file_writer.event_writer._worker
    worker.stop()  # as a full disk ends it
    worker.join()
    go(progress, clock, range(1, 41))
    progress.close()
    assert [line["loss"] for line in lines(tmp_path)] == list(range(1, 41))
    assert caplog.text.count("tensorboard is told no more: its thread has ended") == 1


def test_another_ranks_counts_and_writes_nothing(tmp_path, clock, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "training")
    progress = record(None)
    go(progress, clock, range(1, 7))
    progress.write(6, {"accuracy": 1.0})
    assert progress.pending == (5.0, 6.0)
    progress.close()
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == []
