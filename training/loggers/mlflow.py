"""MLflow: the server or folder that MLFLOW_TRACKING_URI names, without it `mlruns/` in the run's folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from training.loggers.base import Run, keep_id, kept_id

PACKAGE = "mlflow"


class MLflow:
    """Logs to one run of the experiment `faceshards` (or MLFLOW_EXPERIMENT_NAME), which a resumed run goes on with."""

    def __init__(self, run: Run) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants to be told that a folder is meant
        where = os.environ.get("MLFLOW_TRACKING_URI") or (run.out.resolve() / "mlruns").as_uri()
        self._client = MlflowClient(where)
        kept = run.out / "mlflow" / "run_id"
        self._id = kept_id(kept, run.start)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "faceshards")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        begun = self._client.create_run(experiment, run_name=run.out.resolve().name)
        self._id = keep_id(kept, begun.info.run_id)
        self._client.log_batch(self._id, params=[Param(key, str(value)) for key, value in run.config.items()])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger; a name keeps the characters that MLflow takes."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        known = {re.sub(r"[^\w\-./ ]", "_", name): float(value) for name, value in values.items()}
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in known.items()])

    def close(self) -> None:
        """See Logger."""
        self._client.set_terminated(self._id)
