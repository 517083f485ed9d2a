"""TensorBoard's event files, in `tensorboard/` of the run's folder."""

from __future__ import annotations

from collections.abc import Mapping

from training.loggers.base import Run

PACKAGE = "tensorboardX"


class TensorBoard:
    """Writes scalars; steps that an interrupted run wrote beyond its checkpoint are purged."""

    def __init__(self, run: Run) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=run.start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        if not self._alive():  # its thread ends when the disk is full; from then on it would wait for it for ever
            raise OSError("its thread has ended, as it does when the disk is full")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Logger."""
        if self._alive():
            self._writer.close()

    def _alive(self) -> bool:
        return bool(self._writer.file_writer.event_writer._worker.is_alive())
