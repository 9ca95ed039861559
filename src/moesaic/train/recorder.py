"""Where a training stage writes what it saw: metrics.jsonl, samples.jsonl, and live MLflow where the tracking server is reached over http."""

from collections.abc import Mapping

from moesaic.data.sampler import Sample
from moesaic.flow import metrics, track
from moesaic.flow.step import Context


class Recorder:
    """Of rank 0."""

    def __init__(self, context: Context, resume_at: int | None):
        self.file = metrics.MetricsFile(context.work / metrics.NAME, resume_at)
        stage = context.settings[context.name.split("/")[-1]]
        path = context.work / metrics.SAMPLES
        self.samples = metrics.StepLines(path, resume_at) if stage["log_samples"] else None
        self.live = track.live_from_environment(context)

    def log(self, step: int, values: Mapping[str, float], samples: list[Sample]) -> None:
        ts = self.file.log(step, values)
        if self.samples:
            rows = [[sample.domain, sample.row] for sample in samples]
            self.samples.write([{"step": step, "samples": rows}])
        if self.live:
            self.live.log(step, values, ts)

    def close(self) -> None:
        self.file.close()
        if self.samples:
            self.samples.close()
