"""Trackers of other makers that can be told a training's figures: MLflow, trackio.

A training that goes on after an interruption goes on in the same run of the tracker. Steps
that are done again are told again. Their packages are optional and loaded when asked for.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from potstill.errors import MissingExtra

PROJECT = "potstill"
"""Experiment (MLflow) or project (trackio) that runs are kept in, where the environment names
no other."""


class Tracker(Protocol):
    """What a training needs of a tracker."""

    def tell(self, figures: Mapping[str, float]) -> None:
        """The figures of one step; `step` is among them."""

    def close(self, *, failed: bool) -> None:
        """Nothing more will be told."""


def open_tracker(kind: str, name: str, key: str, settings: Mapping[str, Any]) -> Tracker:
    """The tracker of one training, by the name it has in `train.track`.

    Args:
        name: Of the run, as people see it.
        key: What tells this training from all others; one with the same key goes on.
        settings: What the run is shown with.

    Raises:
        MissingExtra: If its package is not installed.
    """
    opened = {"mlflow": MLflow, "trackio": Trackio}[kind]
    try:
        return opened(name, key, settings)
    except ModuleNotFoundError:
        raise MissingExtra(f"train.track: {kind} needs: pip install {kind}") from None


class MLflow:
    """A run of MLflow, found again by its tag."""

    def __init__(self, name: str, key: str, settings: Mapping[str, Any]):
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        self._metric, self._client = Metric, MlflowClient()
        project = MLFLOW_EXPERIMENT_NAME.get() or PROJECT
        experiment = self._client.get_experiment_by_name(project)
        place = experiment.experiment_id if experiment else self._client.create_experiment(project)
        found = self._client.search_runs([place], f"tags.potstill_key = '{key}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"potstill_key": key}
        self._run = self._client.create_run(place, run_name=name, tags=tags).info.run_id
        for setting, value in settings.items():
            self._client.log_param(self._run, setting, value)

    def tell(self, figures: Mapping[str, float]) -> None:
        now, step = int(time.time() * 1000), int(figures["step"])
        metrics = [
            self._metric(name, value, now, step)
            for name, value in figures.items()
            if name != "step"
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class Trackio:
    """A run of trackio, found again by its name."""

    def __init__(self, name: str, key: str, settings: Mapping[str, Any]):
        import trackio

        # It greets on standard output, where a command's JSON belongs.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=PROJECT,
                name=f"{name}-{key[:8]}",
                config=dict(settings),
                resume="allow",
                embed=False,
            )

    def tell(self, figures: Mapping[str, float]) -> None:
        told = {name: value for name, value in figures.items() if name != "step"}
        self._run.log(told, step=int(figures["step"]))

    def close(self, *, failed: bool) -> None:
        import trackio

        # Not the run's own finish(): trackio would do it again when Python ends, and say so on
        # standard output.
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()
