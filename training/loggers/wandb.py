"""Weights & Biases: project `faceshards`, or as its own variables say (WANDB_PROJECT, WANDB_MODE=offline, ...)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from training.loggers.base import Run, keep_id, kept_id

PACKAGE = "wandb"


class Wandb:
    """Logs to one run of wandb, which a resumed run of ours goes on with; its files lie in `wandb/` of the folder."""

    def __init__(self, run: Run) -> None:
        import wandb

        kept = run.out / "wandb" / "run_id"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "faceshards"),
            name=os.environ.get("WANDB_NAME", run.out.resolve().name),
            id=kept_id(kept, run.start) or None,
            resume="allow",
            dir=str(run.out),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        keep_id(kept, self._run.id)
        self._run.define_metric("*", step_metric="step")  # ours, which an interrupted run counts again

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """See Logger."""
        self._run.finish()
