"""Give the neurons of every layer to experts: one pass of the dense parent for the features, splits in parallel processes.

Each layer's result is a file in the work folder, so that an interrupted run goes on with the layers that are missing.
"""

import contextlib
import dataclasses
import pickle
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.experts import splits, whole_layers
from moesaic.experts.assignment import Assignment, Sizes, generator
from moesaic.experts.features import Features, Ffn, measure, sensitivity
from moesaic.experts.trace import Trace
from moesaic.flow import files, memory
from moesaic.flow.progress import Progress
from moesaic.model.lazy import LazyModel, ffn_of

GRADIENTS = frozenset({"importance", "sensitivity"})
"""Needs that the backward pass serves."""
WITHOUT_ACTIVATIONS = frozenset({"weights"})
"""Needs that no pass over the calibration text serves."""
SPLIT_BYTES = 32 * 2**30
"""Memory that splits which wait or run may take together, or half of what is free where that is less. One always runs."""
COPIES, GRAPH_COPIES = 4, 16
"""Memory of a split, by the bytes of its task: here and in the queue, as bytes and as tensors in its worker; there a whole graph takes most (measured: 11 to 16
times the F x F counts)."""


def traced(settings: dict[str, Any]) -> bool:
    """True when the split looks at what the dense parent does on text."""
    return bool(needed(settings) - WITHOUT_ACTIVATIONS)


def needed(settings: dict[str, Any]) -> frozenset[str]:
    """What the split needs, and the choice of layers that stay dense."""
    own = splits.needs(settings)
    return own | whole_layers.NEEDS if whole_layers.counted(settings) else own


def run(
    dense: LazyModel,
    trace: Trace | None,
    cluster_N: Tensor | None,
    layers: list[dict[str, Any]],
    sizes: Sizes,
    dense_layers: tuple[int, ...],
    seed: int,
    work: Path,
    workers: int,
) -> list[Assignment | None]:
    """Assignments of all layers, None for those left dense.

    Args:
        trace: the dense parent on the calibration text; None when no split looks at it. cluster_N: data cluster of each fitting block, when a
        split needs importance. layers: settings by layer. workers: processes for the splits, 0 for none.
    """
    missing = [i for i in range(dense.layers) if i not in dense_layers and not _path(work, i).exists()]
    with contextlib.ExitStack() as stack:
        pool = None
        if workers and any(needed(layers[index]) for index in missing):
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread)
            )
        waiting: dict[int, Future[bytes]] = {}
        for index, ffn, features in _features(dense, trace, cluster_N, layers, missing, sizes.experts, seed):
            needs, settings = needed(layers[index]), layers[index]
            if whole_layers.counted(settings):
                assert features is not None
                assert features.sensitivity_F is not None
                whole_layers.record(work, index, features.sensitivity_F, sizes.shared)
            task = (
                settings["split"],
                ffn if "weights" in needs else None,
                features,
                sizes,
                settings,
                seed,
                index,
            )
            if pool is None or not needs:
                _write(work, index, split_one(*task))
            else:
                # plain pickling: torch's own would hand tensors over in shared memory, which containers keep small
                pickled = pickle.dumps(task)
                _collect(waiting, work, at_once(len(pickled), needs, workers) - 1)
                waiting[index] = pool.submit(_split_pickled, pickled)
        _collect(waiting, work, 0)
    return [None if i in dense_layers else _read(_path(work, i)) for i in range(dense.layers)]


def at_once(size: int, needs: frozenset[str], workers: int) -> int:
    """How many splits may wait or run at once: two for each worker, as far as memory goes. Args: size: bytes of a task."""
    room = min(SPLIT_BYTES, memory.free() // 2)
    each = size * (GRAPH_COPIES if "coactivation" in needs else COPIES)
    return max(1, min(2 * workers, room // each))


def check_clusters(cluster_N: Tensor, clusters: int) -> None:
    """Raises InputError for a cluster without text."""
    empty = [cluster for cluster in range(clusters) if not bool((cluster_N == cluster).any())]
    if empty:
        raise InputError(
            f"experts.calibration.tokens: no calibration text falls into cluster {empty[0]} of {clusters}; take more tokens or fewer experts"
        )


def split_one(
    name: str,
    ffn: Ffn | None,
    features: Features | None,
    sizes: Sizes,
    options: dict[str, Any],
    seed: int,
    layer: int,
) -> Assignment:
    """One layer's split, checked."""
    method = splits.METHODS[name]
    found: Assignment = method.split(ffn, features, sizes, options, seed, layer)
    found.check(sizes, method.OVERLAP)
    return found


def _split_pickled(task: bytes) -> bytes:
    return pickle.dumps(split_one(*pickle.loads(task)))


def _features(
    dense: LazyModel,
    trace: Trace | None,
    cluster_N: Tensor | None,
    layers: list[dict[str, Any]],
    missing: list[int],
    experts: int,
    seed: int,
) -> Iterator[tuple[int, Ffn, Features | None]]:
    """What the splits of the missing layers need: from the last layer to the first when some need gradients, else in order."""
    progress = Progress("split layers", dense.layers, "layers", start=dense.layers - len(missing))
    backwards = [index for index in missing if needed(layers[index]) & GRADIENTS]
    gradients = None
    if backwards:
        assert trace is not None
        # every block counts where clusters of text are told apart
        limit = None if cluster_N is not None else layers[0]["calibration"]["gradient_tokens"]
        gradients = trace.gradients(limit)
        if gradients.next < max(backwards):
            # a split that was still under way when the process ended: once more from the top
            gradients.remove()
            gradients = trace.gradients(limit)
    for index in reversed(range(dense.layers)) if gradients else missing:
        if gradients and (index > gradients.next or index < min(backwards)) and index not in missing:
            continue
        block = dense.layer(index)
        ffn = ffn_of(block)
        needs, features = needed(layers[index]), None
        backward = None
        if gradients and index == gradients.next and index >= min(backwards):
            backward = gradients.activations(block, ffn, cluster_N if "importance" in needs else None)
        if index in missing and needs - WITHOUT_ACTIVATIONS:
            assert trace is not None
            everywhere = gradients is not None and gradients.everywhere
            batches = backward if backward and everywhere else trace.activations(index, block, ffn)
            top, clusters = layers[index]["calibration"]["top"], experts if "importance" in needs else 0
            features = measure(ffn, batches, needs, top, generator(seed, index, 1), clusters)
            if backward and not everywhere:
                features = dataclasses.replace(features, sensitivity_F=sensitivity(ffn, backward))
        elif backward:
            for _ in backward:  # only to hand the gradient down
                pass
        if index in missing:
            yield index, ffn, features
            progress.update()
    if gradients:
        gradients.remove()


def _collect(waiting: dict[int, Future[bytes]], work: Path, most: int) -> None:
    """Write what is done, and wait until no more than `most` are left."""
    while waiting:
        if len(waiting) > most:
            wait(waiting.values(), return_when=FIRST_COMPLETED)
        done = [index for index, future in waiting.items() if future.done()]
        for index in done:
            _write(work, index, pickle.loads(waiting.pop(index).result()))
        if len(waiting) <= most:
            return


def _one_thread() -> None:
    torch.set_num_threads(1)


def _path(work: Path, index: int) -> Path:
    return work / f"split-{index:03}.safetensors"


def _write(work: Path, index: int, found: Assignment) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in vars(found).items() if value is not None}
    with files.atomic_path(_path(work, index)) as temporary:
        save_file(tensors, temporary)


def _read(path: Path) -> Assignment:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(path)
    return Assignment(**found)
