"""Which cluster of text each calibration block belongs to: experts may specialise on them.

Shapes: N blocks, C clusters.
"""

import logging

import torch
from torch import Tensor

from moesaic.errors import InputError

log = logging.getLogger("moesaic.clusters")

TOPICS = 64
"""Dimensions of the text embedding."""


def by_domain(domain_N: Tensor, count: int) -> Tensor:
    """Blocks of a domain stay together; with more clusters than domains each domain is dealt to several. Labels [N]."""
    domains = domain_N.unique().tolist()
    labels = torch.zeros_like(domain_N)
    seen = dict.fromkeys(domains, 0)
    for position, domain in enumerate(domain_N.tolist()):
        own = [cluster for cluster in range(count) if cluster % len(domains) == domains.index(domain)]
        own = own or [domains.index(domain) % count]
        labels[position] = own[seen[domain] % len(own)]
        seen[domain] += 1
    return labels


def by_text(texts: list[str], count: int, seed: int) -> Tensor:
    """k-means on embeddings of the blocks' text (TF-IDF of words, reduced by SVD: latent semantic analysis). Labels [N].

    LLaMA-MoE embeds with a sentence transformer from the hub; latent semantic analysis needs no other model and no network.

    Raises:
        InputError: fewer blocks than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    if len(texts) < count:
        raise InputError(
            f"experts.calibration.tokens: {len(texts)} calibration blocks cannot form {count} clusters; take more tokens or fewer experts"
        )
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.9, max_features=50_000)
    try:
        words = vectorizer.fit_transform(texts)
    except ValueError:  # no word in two blocks: writing without spaces, or few and unlike blocks
        log.info("calibration text shares no words, its pieces of one to four characters are compared")
        pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char", ngram_range=(1, 4), max_features=50_000)
        words = pieces.fit_transform(texts)
    width = max(2, min(TOPICS, min(words.shape) - 1))
    embedded = normalize(TruncatedSVD(width, random_state=seed).fit_transform(words))
    labels = KMeans(count, n_init=10, random_state=seed).fit_predict(embedded)
    sizes = [int((labels == cluster).sum()) for cluster in range(count)]
    log.info(
        "calibration text in %d clusters of %s blocks",
        count,
        ", ".join(map(str, sorted(sizes, reverse=True))),
    )
    return torch.from_numpy(labels).long()
