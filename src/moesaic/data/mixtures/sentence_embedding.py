"""Mixture `sentence-embedding`: gate-load's update with distances between the texts in place of gate loads.

MoE-SFT's baseline (arXiv 2406.11256, section 4.2) embeds with MiniLM, which would have to be fetched. Here a row is its TF-IDF vector over the
tokenizer's tokens (logarithmic counts), reduced by a truncated SVD to `DIMENSIONS` (latent semantic analysis) and scaled to length 1; a dataset is the mean of
its rows. It knows nothing of the model, which is what the baseline is for: the parent's own hidden states, the other choice, would be close to what the gates
read. The text does not change while training, so the distances are measured once, before the first update, and kept in the checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from moesaic.data.mixtures.base import Probe
from moesaic.data.mixtures.gate_load import GateLoad, profiled, squared_distances

DIMENSIONS = 64


class SentenceEmbedding(GateLoad):
    """Exponentiated update on distances that never change."""

    DEFAULTS: Mapping[str, Any] = {"rows": 256, "layers": "last", "step_size": 10.0}

    def __init__(self, settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]):
        super().__init__(settings, sizes, like)
        self.distances: list[list[float]] | None = None

    def wants(self) -> Literal["model", "text"] | None:
        return "text" if self.distances is None else None

    def look(self, probe: Probe | None) -> dict[str, float]:
        if probe is not None:
            self.distances = np.sqrt(squared_distances(profiled(probe, self.names))).tolist()
        assert self.distances is not None, "the texts were not embedded"
        distance_DD = np.array(self.distances)
        self._move(distance_DD.mean(axis=1))
        return self._logged("text", distance_DD, distance_DD, distance_DD.mean(axis=1))

    def state(self) -> dict[str, Any]:
        return super().state() | {"distances": self.distances}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.distances = state["distances"]


def embed(rows: Mapping[str, Sequence[np.ndarray]], seed: int) -> dict[str, np.ndarray]:
    """Embeddings of length 1 of each dataset's rows [R, 1, S].

    Args:
        rows: token ids [T] of each row. seed: of the randomised SVD.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.preprocessing import normalize

    every = [ids for name in sorted(rows) for ids in rows[name]]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in every])])
    ids = np.concatenate(every)
    counts = csr_matrix((np.ones(len(ids)), ids, starts))  # repeated columns of a row are added up
    counts.sum_duplicates()
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    size = min(DIMENSIONS, len(every) - 1, counts.shape[1] - 1)
    found_NS = (
        normalize(TruncatedSVD(size, random_state=seed).fit_transform(weighted))
        if size > 0
        else weighted.toarray()
    )
    out, begin = {}, 0
    for name in sorted(rows):
        out[name] = found_NS[begin : begin + len(rows[name]), None, :]
        begin += len(rows[name])
    return out
