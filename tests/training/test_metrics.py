"""What a run tells while it goes."""

from __future__ import annotations

import json

import pytest

from training.metrics import Progress


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_the_mean_of_all_steps_since_the_last(tmp_path):
    progress = Progress(tmp_path, 10, 10, 4, 4, 0)
    for step in range(1, 7):
        progress.step(step, float(step), 0.1, 1.0, 1.0)
    assert progress.pending == (5.0, 6.0)
    progress.close()
    again = Progress(tmp_path, 10, 10, 4, 4, 6, (5.0, 6.0))
    for step in range(7, 11):
        again.step(step, float(step), 0.1, 1.0, 1.0)
    again.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(4, 2.5), (8, 6.5), (10, 9.5)]


def test_lines_beyond_the_checkpoint_are_forgotten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 1}\n{"step": 6, "lo')
    Progress(tmp_path, 10, 10, 4, 4, 3).close()
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_events_that_cannot_be_written_do_not_hold_a_run_up(tmp_path, caplog):
    progress = Progress(tmp_path, 100, 10, 4, 1, 0)
    worker = progress._board.file_writer.event_writer._worker
    worker.stop()  # as a full disk ends it
    worker.join()
    for step in range(1, 41):
        progress.step(step, 1.0, 0.1, 1.0, 1.0)
    progress.close()
    assert len(lines(tmp_path)) == 40
    assert caplog.text.count("TensorBoard's events cannot be written") == 1


def test_a_silent_one_writes_nothing(tmp_path):
    progress = Progress(None, 10, 10, 4, 1, 0)
    progress.step(1, 1.0, 0.1, 1.0, 1.0)
    progress.write(1, {"accuracy": 1.0})
    progress.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        lines(tmp_path)
