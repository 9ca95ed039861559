"""What tests look up in the MLflow database of a finished run."""

import contextlib
import sqlite3
from pathlib import Path

from report import fake_results

from moesaic.flow import store

RESULTS = Path("results")
TABLES = ("runs", "metrics", "latest_metrics", "params", "tags", "experiments", "datasets", "inputs")


def counts() -> dict[str, int]:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        return {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}


def runs(config, **tags: str) -> list:
    client, experiment = store.open_experiment(config.track.uri, config.track.experiment)
    return list(store.search(client, experiment, **tags))


def step(config, key: str):
    """The current run of a step."""
    found = [
        run
        for run in runs(config, kind="step", step_key=key)
        if run.data.tags.get("moesaic.superseded") != "true"
    ]
    assert len(found) == 1
    return found[0]


def history(config, run, key: str) -> list[tuple[int, float]]:
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    return sorted((item.step, item.value) for item in client.get_metric_history(run.info.run_id, key))


def pretrain_again(config, **training) -> None:
    """The pretrain step of `activation`, made once more with changed settings."""
    fake_results.again(config, "pretrain", "activation", **{"steps": 1} | training)
