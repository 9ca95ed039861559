"""Give the neurons of every layer to experts: one pass of the dense parent for the features, splits in parallel processes.

Each layer's result is a file in the work folder, so that an interrupted run goes on with the layers that are missing.
"""

import contextlib
import pickle
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.experts import calibration, importance, splits
from moesaic.experts.assignment import Assignment, Sizes, generator
from moesaic.experts.features import Features, Ffn, measure
from moesaic.experts.stream import Stream
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.model.lazy import LazyModel, attend, ffn_of

WITHOUT_ACTIVATIONS = frozenset({"importance", "weights"})
"""Needs that no pass over the calibration text serves."""


def run(
    dense: LazyModel,
    text: calibration.Text | None,
    cluster_N: Tensor | None,
    layers: list[dict[str, Any]],
    sizes: Sizes,
    dense_layers: tuple[int, ...],
    batch: int,
    seed: int,
    work: Path,
    workers: int,
) -> list[Assignment | None]:
    """Assignments of all layers, None for those left dense.

    Args:
        text: calibration text, of which only what fits may use is read; None when no split needs any. cluster_N: data cluster of each
        of its fitting blocks, when a split needs importance. layers: settings by layer. workers: processes for the splits, 0 for none.
    """
    needs = [_needs(settings, index, dense_layers) for index, settings in enumerate(layers)]
    missing = [i for i in range(dense.layers) if i not in dense_layers and not _path(work, i).exists()]
    if missing:
        importance_LCF = None
        if text is not None and cluster_N is not None:
            fitted = slice(0, text.fitted)
            importance_LCF = importance.measure(
                dense, text.ids_NT[fitted], cluster_N, sizes.experts, batch, work
            )
        with contextlib.ExitStack() as stack:
            pool = None
            if workers and any(needs[index] for index in missing):
                pool = stack.enter_context(
                    ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread)
                )
            waiting: dict[int, Future[bytes]] = {}
            for index, ffn, features in _features(
                dense, text, importance_LCF, needs, layers, missing, batch, seed, work
            ):
                settings = layers[index]
                weights = ffn if "weights" in needs[index] else None
                task = (settings["split"], weights, features, sizes, settings, seed, index)
                if pool is None or not needs[index]:
                    _write(work, index, split_one(*task))
                else:
                    # plain pickling: torch's own would hand tensors over in shared memory, which containers keep small
                    waiting[index] = pool.submit(_split_pickled, pickle.dumps(task))
                    _collect(waiting, work, only_done=len(waiting) <= 2 * workers)
            _collect(waiting, work, only_done=False)
    return [None if i in dense_layers else _read(_path(work, i)) for i in range(dense.layers)]


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


@torch.no_grad()
def _features(
    dense: LazyModel,
    text: calibration.Text | None,
    importance_LCF: Tensor | None,
    needs: list[frozenset[str]],
    layers: list[dict[str, Any]],
    missing: list[int],
    batch: int,
    seed: int,
    work: Path,
) -> Iterator[tuple[int, Ffn, Features | None]]:
    """Walk down the dense parent; yield what the splits of the missing layers need."""
    streamed = text is not None and any(needs[index] - WITHOUT_ACTIVATIONS for index in missing)
    progress = Progress("split layers", dense.layers, "layers")
    stream: Stream | None = None
    parts: list[slice] = []
    positions = None
    if streamed:
        assert text is not None
        fitted = text.fitted
        parts = calibration.batches(text.fold_N[:fitted], batch)
        stream = Stream(work, "dense", (fitted, text.ids_NT.shape[1], dense.config.hidden_size))
        stream.begin((part, dense.embedding()[text.ids_NT[part]]) for part in parts)
        positions = dense.positions(text.ids_NT.shape[1])
    for index in range(dense.layers):
        if stream is not None and index < stream.layer:
            # a split that was still under way when the process ended is made from a stream that starts again
            if index in missing and needs[index] - WITHOUT_ACTIVATIONS:
                stream.remove()
                yield from _features(dense, text, importance_LCF, needs, layers, missing, batch, seed, work)
                return
            progress.update()
            continue
        if stream is None and index not in missing:
            progress.update()
            continue
        block = dense.layer(index)
        ffn = ffn_of(block)
        found: Features | None = None
        if stream is not None:
            assert text is not None
            assert positions is not None
            for part in parts:
                stream.after[part], _ = attend(block, stream.now[part], positions)
            source = calibration.LayerActivations(
                ffn, block.post_attention_layernorm, stream.after, text.fold_N, parts
            )
            own = None if importance_LCF is None else importance_LCF[index]
            if index in missing and needs[index]:
                top = layers[index]["calibration"]["top"]
                found = measure(ffn, source.fitting(), needs[index], top, generator(seed, index, 1), own)
            for place, part in enumerate(parts):
                added = source.at(place).target(ffn)
                stream.after[part] += added.view_as(stream.after[part])
            stream.advance()
        elif importance_LCF is not None and needs[index]:
            found = _only_importance(importance_LCF[index])
        if index in missing:
            yield index, ffn, found
        progress.update()
    if stream is not None:
        stream.remove()


def _only_importance(importance_CF: Tensor) -> Features:
    empty = torch.zeros(0)
    return Features(0, empty, empty, empty, empty, empty, empty, empty, importance_CF=importance_CF)


def _needs(settings: dict[str, Any], index: int, dense_layers: tuple[int, ...]) -> frozenset[str]:
    found: frozenset[str] = splits.METHODS[settings["split"]].NEEDS
    return frozenset() if index in dense_layers else found


def _collect(waiting: dict[int, Future[bytes]], work: Path, only_done: bool) -> None:
    for index in list(waiting):
        if not only_done or waiting[index].done():
            _write(work, index, pickle.loads(waiting.pop(index).result()))


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
