"""Measurements of steps and rounds in MLflow."""

import time
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from udmlss._checks import import_optional
from udmlss.training.callbacks.loggers.logger import Kind, Logger, Values, by_full_name

_PER_REQUEST = 500  # values; a server accepts at most 1000


class MLflowLogger(Logger):
    """Log to a run of MLflow.

    The run is the active one, which `mlflow.start_run` has started and which remains active. If there is none, the
    logger starts one in the present experiment and ends it when training ends. Where it is stored is set by
    `mlflow.set_tracking_uri` and `mlflow.set_experiment`. Under `torchrun`, call `mlflow.start_run` on rank 0 only. The
    names are those of `TensorBoardLogger`.

    Steps of a run that were logged before are not logged again. To continue a run after an interruption, start it by
    `mlflow.start_run(run_id=...)`. Values are sent 500 at a time, and at the end of every round.

    Args:
        show_clusters: Number of clusters, from the largest to the smallest, of which 8 images are shown at the end of
            every round. 0 shows none.

    Raises:
        ImportError: mlflow is not installed.
        ValueError: `show_clusters` is negative.

    Example:
        `fit(model, images, ..., callbacks=MLflowLogger(show_clusters=5))`
    """

    def __init__(self, *, show_clusters: int = 0) -> None:
        super().__init__(show_clusters)
        self._mlflow = import_optional("mlflow", "`MLflowLogger`", '"udmlss[mlflow]"')
        self._client: Any = None
        self._run_id = ""
        self._owns_run = False
        self._last_logged: dict[Kind, int] = {}
        self._metrics: list[Any] = []

    def _connect(self) -> None:
        """Start a run unless there is one, and find the last step that it has."""
        active = self._mlflow.active_run()
        self._owns_run = active is None
        # MLflow would sample a name from Python's generator, which training has seeded
        active = active or self._mlflow.start_run(run_name=time.strftime("udmlss %Y-%m-%d %H:%M:%S"))
        self._client, self._run_id, self._metrics = self._mlflow.MlflowClient(), active.info.run_id, []
        # Before training a round has scores, but no loss
        self._last_logged = {
            "step": self._last_step("step/loss"),
            "round": self._last_step("round/loss", "round/score"),
        }

    def _write(self, kind: Kind, step: int, values: Values) -> None:
        """Write values, the last of a round at once."""
        if step <= self._last_logged[kind]:
            return
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        self._metrics += [metric(name, value, now, step) for name, value in by_full_name(kind, values).items()]
        if kind == "round" or len(self._metrics) >= _PER_REQUEST:
            self._send()

    def _write_image(self, step: int, image: UInt8[Tensor, "h w 3"]) -> None:
        """Write a sheet of clusters."""
        if step > self._last_logged["round"]:
            self._client.log_image(self._run_id, image.numpy(), key="clusters", step=step)

    def _close(self, *, completed: bool) -> None:
        """Send what is left, and end a run that the logger has started."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            self._send(client)
        finally:
            if self._owns_run:
                self._mlflow.end_run("FINISHED" if completed else "FAILED")

    def _send(self, client: Any = None) -> None:  # noqa: ANN401 (of mlflow)
        metrics, self._metrics = self._metrics, []
        if metrics:
            (client or self._client).log_batch(self._run_id, metrics=metrics)

    def _last_step(self, *names: str) -> int:
        histories = [self._client.get_metric_history(self._run_id, name) for name in names]
        return max((metric.step for history in histories for metric in history), default=-1)
