"""Settings and a tokenizer for the reliability suite on a tiny model."""

import project

from moesaic.schema import Evaluate

TOK = project.tokenizer_of_library()
SENTENCES = [
    {
        "sentence": f"this film number {i} was {'great' if i % 2 else 'dull'} before the end for you",
        "label": i % 2,
    }
    for i in range(12)
]


def settings(**changes):
    plain = {"tasks": [], "bootstrap": 100, "batch": 4, "reliability": {"dola": {"layers": [1, 2]}}}
    return Evaluate(**(plain | changes)).model_dump(mode="json")
