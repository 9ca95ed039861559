"""What conversions of one seed have in common, made once: the dense parent's pass over the calibration text, and the features of each kind of split."""

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesaic.experts import split_layers
from moesaic.experts.trace import NAME, STATE, Trace
from moesaic.flow import files
from moesaic.model.lazy import ffn_of

SECONDS = "trace-seconds.json"


class Shared:
    """A folder that several processes may use at once, of one parent and one text. While it lives, conversions of this process take from it and add to it."""

    def __init__(self, root: Path):
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.folder = root, root
        self.seconds = 0.0
        """What the work of the last conversion that was not done again had taken."""
        self.run, self.features = Trace.run, split_layers._features
        Trace.run = lambda own: self._run(own)  # type: ignore[method-assign]
        split_layers._features = self._features

    def begin(self, seed: int, tokens: int, work: Path) -> None:
        """Lend what is there to a conversion in `work`, which lies on the same file system."""
        self.folder, self.seconds = self.root / f"seed-{seed}-{tokens}", 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / STATE).exists():
            for name in (NAME, STATE):
                os.link(self.folder / name, work / name)

    def _run(self, trace: Trace) -> None:
        if trace.done == trace.dense.layers:
            self.seconds += files.read_json(self.folder / SECONDS)
            return
        began = time.monotonic()
        self.run(trace)
        files.write_json(self.folder / SECONDS, time.monotonic() - began)
        for name in (NAME, STATE):  # the state last: with it the pass is there
            own = self.folder / f"{name}.{os.getpid()}"
            os.link(trace.work / name, own)
            own.replace(self.folder / name)

    def _features(
        self, dense: Any, trace: Any, cluster_N: Any, layers: Any, missing: list[int], experts: int, seed: int
    ) -> Iterator[Any]:
        needs = split_layers.needed(layers[missing[0]])
        assert all(split_layers.needed(layers[index]) == needs for index in missing)
        asked = (dense, trace, cluster_N, layers, missing, experts, seed)
        if not needs - split_layers.WITHOUT_ACTIVATIONS:
            yield from self.features(*asked)
            return
        name = "-".join(sorted(needs)) + (f"-{experts}" if "importance" in needs else "")
        paths = {index: self.folder / name / f"{index:03}.pickle" for index in missing}
        if all(path.exists() for path in paths.values()):
            for index, path in paths.items():
                seconds, found = pickle.loads(path.read_bytes())
                self.seconds += seconds
                yield index, ffn_of(dense.layer(index)), found
            return
        began = time.monotonic()
        for index, ffn, found in self.features(*asked):
            with files.atomic_path(paths[index]) as temporary:
                temporary.write_bytes(pickle.dumps((time.monotonic() - began, found)))
            yield index, ffn, found
            began = time.monotonic()
