"""Metrics streamed to an MLflow server while training runs. Errors and a slow server never hold up or stop training.

Only where the tracking URI is http(s), and only on rank 0. The values are in metrics.jsonl anyway; the replay at the end
fills what did not arrive.
"""

import atexit
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from typing import Any

from moesaic.flow import files, manifest, store
from moesaic.flow.step import Context

log = logging.getLogger("moesaic.track")
QUEUE = 10_000
FLUSH = 15.0
"""Seconds that the end of a stage waits for what is still in the queue."""

Values = tuple[int, dict[str, float], int]


class Live:
    """Writer of one step's run. `log` only fills a queue; a thread does the talking."""

    def __init__(self, uri: str, experiment: str, parent: str, key: str, digest: str, started: str):
        self.uri, self.experiment, self.parent = uri, experiment, parent
        self.key, self.digest, self.started = key, digest, started
        self._queue: queue.Queue[Values | None] = queue.Queue(QUEUE)
        self._complained = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def log(self, step: int, values: Mapping[str, float], ts: int) -> None:
        """Queue the values of a step; `ts` is the time stamp (ms) that is in metrics.jsonl. Never raises, never waits."""
        try:
            self._queue.put_nowait((step, dict(values), ts))
        except queue.Full:
            self._complain("the queue is full")

    def close(self) -> None:
        """Wait a little for the queue to empty. Called at exit, too."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                self._complain("the queue is full")
                return
            self._thread.join(FLUSH)

    def _work(self) -> None:
        run_id, last = "", -1
        client = None
        while True:
            batch, end = self._take()
            try:
                if client is None:
                    client = store.client(self.uri)
                    run_id, last = self._open(client)
                self._send(client, run_id, [item for item in batch if item[0] > last])
            except Exception as error:  # whatever it is, training is worth more; the file has the values
                client = None
                self._complain(store.one_line(error))
            if end:
                return

    def _take(self) -> tuple[list[Values], bool]:
        """Everything in the queue, at least one item; True when `close` was called."""
        items = [self._queue.get()]
        while items[-1] is not None and len(items) < 100:
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return [item for item in items if item is not None], items[-1] is None

    def _open(self, client: Any) -> tuple[str, int]:
        """Find or make the run; the last step that the server has (a resume repeats the steps since the checkpoint)."""
        parent = client.get_run(self.parent)
        experiment, workspace = parent.info.experiment_id, parent.data.tags["moesaic.workspace"]
        known = list(store.search(client, experiment, workspace=workspace, kind="step", step_key=self.key))
        run = store.child(
            client, experiment, self.parent, workspace, known, self.key, self.digest, self.started
        )
        store.supersede(client, known, self.key, run.info.run_id)
        client.update_run(run.info.run_id, status="RUNNING")
        if "train/loss" not in run.data.metrics:
            return run.info.run_id, -1
        history = client.get_metric_history(run.info.run_id, "train/loss")
        return run.info.run_id, max(item.step for item in history)

    def _send(self, client: Any, run_id: str, batch: list[Values]) -> None:
        from mlflow.entities import Metric

        found = [Metric(store.clean(k), v, ts, step) for step, values, ts in batch for k, v in values.items()]
        for i in range(0, len(found), store.METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=found[i : i + store.METRICS_PER_BATCH])

    def _complain(self, reason: str) -> None:
        if not self._complained:
            log.warning(
                "MLflow at %s: %s; training goes on, the values are in metrics.jsonl", self.uri, reason
            )
        self._complained = True


def live(uri: str, experiment: str, parent: str, key: str, digest: str, started: str) -> Live | None:
    """A live writer, or None where only files are written: no server, or no parent run to write under."""
    return Live(uri, experiment, parent, key, digest, started) if store.is_http(uri) and parent else None


def live_from_environment(context: Context) -> Live | None:
    """The live writer of a training step, from what the workflow's main process left in the environment."""
    uri, parent = os.environ.get("MOESAIC_TRACKING_URI", ""), os.environ.get("MOESAIC_PARENT_RUN", "")
    if not store.is_http(uri) or not parent:
        return None
    inputs = {name: files.sha256(manifest.path_of(item.folder)) for name, item in context.inputs.items()}
    digest = store.identity(context.settings, inputs)
    record = json.loads((context.work / "run.json").read_text(encoding="utf-8"))
    return live(
        uri, os.environ.get("MOESAIC_EXPERIMENT", ""), parent, context.name, digest, record["started"]
    )
