"""What tests of sampling ask, and as much of a tokenizer as it needs."""

import torch
from tiny import VOCABULARY

from moesaic.generate.sample import Prompt


class Words:
    """As much of a tokenizer as sampling needs."""

    eos_token_id = 2
    chat_template = None

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i == 2))


def prompts(count):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    return [
        Prompt(f"p{i}", torch.randint(3, VOCABULARY, (n,), generator=generator).tolist())
        for i, n in enumerate(lengths)
    ]
