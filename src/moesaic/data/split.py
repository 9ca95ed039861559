"""The two sides of all data, and which of them a text is on."""

import hashlib

SPLITS = ("train", "validation")


def side_of(key: str, validation: float) -> str:
    """A side by the digest of a key alone, so that more data leave every text where it was. Args: validation: share of that side."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < validation * 2.0**64 else "train"
