"""Static pruning by similarity, the baseline of depth routing: the layers that turn the residual stream least, on text, never run again for any token.

Block influence (ShortGPT, arXiv 2403.03853, eq. 1): BI = 1 - E[cos(x_in, x_out)]. Unit `layer`: x_in and x_out are a whole decoder layer's input and output, and the
layer is taken out; the model stays a standard one. Unit `ffn`: those of the FFN with its residual (1 - mean mu of labels.py), and only the FFN is left out, so that
as much is computed as with depth routing of the same capacity.

Shapes: B sequences, T tokens, D model width, L layers.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model.depth import expand, skip
from moesaic.model.depth.labels import similarity

Unit = Literal["layer", "ffn"]


@torch.no_grad()
def influence(model: Any, batches: Iterable[tuple[Tensor, Tensor | None]], unit: Unit) -> list[float]:
    """Block influence of every layer, in one forward pass over the text.

    Args:
        batches: token ids [B, T] and mask (1 for tokens; None without padding). unit: see above.
    """
    count = model.config.num_hidden_layers
    sums, tokens = torch.zeros(count, dtype=torch.float64), 0
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def look(index: int) -> Any:
        def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            inputs[index] = args[0] if args else kwargs["hidden_states"]

        return before

    def keep(index: int) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return after

    handles = []
    for index, layer in enumerate(model.model.layers):
        first = layer if unit == "layer" else layer.post_attention_layernorm
        handles += [
            first.register_forward_pre_hook(look(index), with_kwargs=True),
            layer.register_forward_hook(keep(index)),
        ]
    training = model.training
    model.eval()
    try:
        for ids_BT, mask_BT in batches:
            device = model.get_input_embeddings().weight.device
            mask = None if mask_BT is None else mask_BT.to(device)
            model.base_model(input_ids=ids_BT.to(device), attention_mask=mask, use_cache=False)
            valid_T = (
                torch.ones_like(ids_BT).flatten().bool() if mask_BT is None else mask_BT.flatten().bool()
            )
            tokens += int(valid_T.sum())
            for index in range(count):
                before_TD, after_TD = (x[index].flatten(0, 1).float() for x in (inputs, outputs))
                mu_T = similarity(before_TD, after_TD - before_TD).cpu()
                sums[index] += mu_T[valid_T].double().sum()
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return (1.0 - sums / tokens).tolist()


def choose(influences: Sequence[float], eligible: Sequence[int], capacity: float) -> list[int]:
    """The layers that go: the floor((1 - capacity) L) least influential of the eligible ones, sorted; of equal ones the later.

    Raises:
        InputError: none would go.
    """
    count = int((1.0 - capacity) * len(eligible) + 1e-9)
    if count == 0:
        raise InputError(
            f"tune.depth.skip.capacity: {capacity} of {len(eligible)} layers leaves all of them; lower it"
        )
    return sorted(sorted(eligible, key=lambda index: (influences[index], -index))[:count])


def prune(model: Any, chosen: Sequence[int], unit: Unit) -> None:
    """Take layers out, or their FFNs, in place."""
    if unit == "ffn":
        skip.attach(model, [], chosen)
        return
    kept = [index for index in range(model.config.num_hidden_layers) if index not in set(chosen)]
    expand.relabel(model, [model.model.layers[index] for index in kept], kept)
