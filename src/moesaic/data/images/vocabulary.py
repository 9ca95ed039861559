"""Image tokens as words of the model: their names, how a picture is written with them, and a model whose vocabulary has them.

The names are ordinary added tokens of the tokenizer, so a picture is a piece of text like any other:

    <|image 2x3|><|code 17|><|code 4|> ... <|image end|>

and everything that works on text (chat templates, packing, generation, decoding) works on it. The ids come back from the names.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from moesaic.errors import InputError
from moesaic.model.adapters.layout import ImageTokens

END = "<|image end|>"
PICTURE = re.compile(r"<\|image (\d+)x(\d+)\|>((?:<\|code \d+\|>)*)(<\|image end\|>)?")
ANY = re.compile(r"<\|(?:image (?:\d+x\d+|end)|code \d+)\|>")


def names(codes: int, grids: Sequence[tuple[int, int]]) -> list[str]:
    """All names, in the order in which they get their ids."""
    return [f"<|code {i}|>" for i in range(codes)] + [END] + [f"<|image {h}x{w}|>" for h, w in grids]


def write(codes_HW: np.ndarray) -> str:
    """A picture as text."""
    height, width = codes_HW.shape
    return f"<|image {height}x{width}|>" + "".join(f"<|code {c}|>" for c in codes_HW.flatten()) + END


def parse(text: str) -> list[np.ndarray]:
    """The pictures in a text [H, W] each; a picture that breaks off is filled up with code 0, one with too many codes is cut."""
    found = []
    for height, width, body, _ in PICTURE.findall(text):
        cells = int(height) * int(width)
        codes = [int(code) for code in re.findall(r"\d+", body)][:cells]
        found.append(np.array(codes + [0] * (cells - len(codes))).reshape(int(height), int(width)))
    return found


def extend(
    model: Any, tokenizer: Any, codes: int, grids: Sequence[tuple[int, int]], seed: int = 0
) -> ImageTokens:
    """Add the image tokens to a tokenizer and to a dense or MoE model (both changed in place).

    The rows of the text stay bit for bit. The new ones are the mean row plus noise of a tenth of the rows' spread, so that codes are near the
    centre of what the model knows and differ from each other.

    Raises:
        InputError: the tokenizer has image tokens already, or no grid is given.
    """
    if not grids:
        raise InputError("data.images.grids: give at least one grid")
    if END in tokenizer.get_vocab():
        raise InputError("data.images: the model's tokenizer has image tokens already; leave data.images out")
    tokenizer.add_tokens(_added(names(codes, grids)))
    before = model.get_input_embeddings().weight.shape[0]
    wanted = max(before, len(tokenizer))
    old = {id(w): w.detach().clone() for w in _weights(model)}
    kept = list(old.values())
    model.resize_token_embeddings(wanted, mean_resizing=False)
    tokens = of(tokenizer)
    assert tokens is not None
    rows = sorted({*range(tokens.first, tokens.first + codes), tokens.end, *tokens.grids})
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight, text in zip(_weights(model), kept, strict=True):
            weight[: len(text)] = text
            known = text[: min(rows)].float()
            noise = torch.randn(len(rows), weight.shape[1], generator=random)
            weight[rows] = (known.mean(0) + 0.1 * known.std(0) * noise).to(weight)
    return tokens


def of(tokenizer: Any) -> ImageTokens | None:
    """The image tokens of a tokenizer, from their names; None when it has none.

    Raises:
        InputError: the codes do not follow on from one another.
    """
    vocabulary = tokenizer.get_vocab()
    if END not in vocabulary:
        return None
    found = {name: i for name, i in vocabulary.items() if ANY.fullmatch(name)}
    codes = {int(re.findall(r"\d+", name)[0]): i for name, i in found.items() if name.startswith("<|code")}
    grids = {}
    for name, i in found.items():
        size = re.fullmatch(r"<\|image (\d+)x(\d+)\|>", name)
        if size:
            grids[i] = (int(size[1]), int(size[2]))
    first = codes.get(0, -1)
    if not grids or any(codes.get(c) != first + c for c in range(len(codes))):
        raise InputError(
            "the tokenizer's image tokens are not numbered in order; take the tokenizer that was saved with the model"
        )
    return ImageTokens(first, len(codes), vocabulary[END], grids)


@contextlib.contextmanager
def text_only(model: Any, tokens: ImageTokens | None) -> Iterator[None]:
    """The model with the words of text alone in its output layer, for what has no picture in it: then it is the model that it was before `extend`,
    to the last bit (of a tokenizer that covers the whole embedding; unused rows behind the tokenizer's words are left out too). Without image tokens nothing changes."""
    if tokens is None:
        yield
        return
    whole = model.get_output_embeddings()
    words = min([tokens.first, tokens.end, *tokens.grids])
    head = torch.nn.Linear(whole.weight.shape[1], words, bias=False, device="meta")
    head.weight = torch.nn.Parameter(whole.weight.detach()[:words], requires_grad=False)
    model.set_output_embeddings(head)
    try:
        yield
    finally:
        model.set_output_embeddings(whole)


def _added(words: list[str]) -> list[Any]:
    from tokenizers import AddedToken

    # not special: they belong to the text, are decoded with it, and may stand in a conversation
    return [AddedToken(word, normalized=False, special=False) for word in words]


def _weights(model: Any) -> list[torch.Tensor]:
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [inputs] if inputs is outputs else [inputs, outputs]
