"""Lateralization LoRA: a linear low-rank update where a token is text, a convolutional one where it is part of an image.

    text token t:   y_t = W x_t + (a / r) B_T A_T x_t
    image i:        Y_i = W X_i + (a / r) B_I (kernel * Z_i),  Z_i = A_I X_i on the image's grid of rows and columns

Which of the two is said by the token, not learned. Source of the idea: arXiv 2407.03604, whose equations, rank and kernel size could not be
read: the formulas are our reconstruction. The kernel is causal in raster order (a centred one would let a cell see the cells that it is to
predict); cached decoding keeps the last rows of Z.

Shapes: B batch, T tokens, D width in, O width out, r rank, N image tokens, K taps, L kept positions, E experts.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model.adapters import bottleneck
from moesaic.model.adapters.options import Options
from moesaic.model.adapters.sequence import Sequences


class Adapted(nn.Module):
    """A linear layer with an update; the update starts at exactly zero. Parameters are named as peft names them (`lora_*`)."""

    sequences: Sequences

    def __init__(self, base: nn.Linear, options: Options, sequences: Sequences):
        super().__init__()
        self.base_layer = base
        base.requires_grad_(False)
        self.scaling = options.alpha / options.rank
        self.options = options
        self.number = 0
        """Of the layer among the adapted ones."""
        object.__setattr__(self, "sequences", sequences)  # shared by all layers, no part of this one

    def pair(self, rank: int) -> tuple[nn.Linear, nn.Linear]:
        """A [r, D] (Kaiming, as nn.Linear and peft start it) and B [O, r] of zeros, in float32 beside weights of half precision."""
        base, weight = self.base_layer, self.base_layer.weight
        dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
        like: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": dtype}
        down, up = nn.Linear(base.in_features, rank, **like), nn.Linear(rank, base.out_features, **like)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        return down, up

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, O]."""
        y_BTO = self.base_layer(x_BTD)
        return self.update(x_BTD.to(next(self.update_parameters()).dtype), y_BTO)

    def update_parameters(self) -> Any:
        """The parameters of the update alone."""
        return (p for name, p in self.named_parameters() if name.startswith("lora_"))

    def learned(self) -> Any:
        """Those of them that learn."""
        frozen = ("lora_A.", "lora_B.") if self.options.freeze_text else ()
        return (
            p
            for name, p in self.named_parameters()
            if name.startswith("lora_") and not name.startswith(frozen)
        )

    def update(self, x_BTD: Tensor, y_BTO: Tensor) -> Tensor:
        """y with the update added."""
        raise NotImplementedError


class Shared(Adapted):
    """One linear LoRA for all tokens (Hu et al., arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, options: Options, sequences: Sequences):
        super().__init__(base, options, sequences)
        self.lora_A, self.lora_B = self.pair(options.rank)

    def update(self, x_BTD: Tensor, y_BTO: Tensor) -> Tensor:
        """y + (a / r) B A x."""
        return (y_BTO + self.lora_B(self.lora_A(x_BTD)) * self.scaling).to(y_BTO.dtype)


class Experts(Adapted):
    """Several linear LoRAs with a softmax over all of them, learned from the token: y + (a / r) sum_e softmax(G x)_e B_e A_e x."""

    def __init__(self, base: nn.Linear, options: Options, sequences: Sequences):
        super().__init__(base, options, sequences)
        pairs = [self.pair(options.rank) for _ in range(options.experts)]
        self.lora_A, self.lora_B = (nn.ModuleList(side) for side in zip(*pairs, strict=True))
        weight = pairs[0][0].weight
        self.lora_gate = nn.Linear(
            base.in_features, options.experts, bias=False, device=weight.device, dtype=weight.dtype
        )

    def update(self, x_BTD: Tensor, y_BTO: Tensor) -> Tensor:
        """All experts run for each token, as they are small."""
        gate_BTE = self.lora_gate(x_BTD).softmax(dim=-1)
        for e, (down, up) in enumerate(zip(self.lora_A, self.lora_B, strict=True)):
            y_BTO = (y_BTO + up(down(x_BTD) * gate_BTE[..., e : e + 1]) * self.scaling).to(y_BTO.dtype)
        return y_BTO


class ByModality(Adapted):
    """Text tokens through one pair, image tokens through another; the base of the two methods that route by modality."""

    def __init__(self, base: nn.Linear, options: Options, sequences: Sequences):
        super().__init__(base, options, sequences)
        self.lora_A, self.lora_B = self.pair(options.rank)
        if options.freeze_text:
            self.lora_A.requires_grad_(False)
            self.lora_B.requires_grad_(False)
        self.lora_image_A, self.lora_image_B = self.pair(options.image_rank or options.rank)
        self.image_scaling = options.alpha / (options.image_rank or options.rank)

    def update(self, x_BTD: Tensor, y_BTO: Tensor) -> Tensor:
        """Text positions and image positions are taken out, updated and put back."""
        now = self.sequences.now
        if now is None or x_BTD.shape[:2] != now.is_image_BT.shape:
            raise InputError(
                "adapter: the layer ran outside its model, or on other positions than the model's token ids; call the model with input_ids"
            )
        if not now.images:
            # the same operations as a plain LoRA, so the same bits
            out_BTO = y_BTO + self.lora_B(self.lora_A(x_BTD)) * self.scaling
        else:
            text_M = (~now.is_image_BT).flatten().nonzero()[:, 0]
            delta_MO = self.lora_B(self.lora_A(x_BTD.flatten(0, 1)[text_M])) * self.scaling
            out_BTO = _added(y_BTO, text_M, delta_MO)
        if now.images or self.training or self.sequences.caching:
            # without an image the sum is empty, but the parameters stay in the graph: every rank has gradients for all of them
            x_ND = x_BTD.flatten(0, 1)[now.place_N]
            delta_NO = self.lora_image_B(self.image(self.lora_image_A(x_ND))) * self.image_scaling
            if now.images or self.training:
                out_BTO = _added(out_BTO, now.place_N, delta_NO)
        return out_BTO.to(y_BTO.dtype)

    def image(self, z_Nr: Tensor) -> Tensor:
        """What happens between the factors."""
        return z_Nr


class Lateral(ByModality):
    """The convolution in the image branch."""

    def __init__(self, base: nn.Linear, options: Options, sequences: Sequences):
        super().__init__(base, options, sequences)
        kernel = bottleneck.build(
            options.kernel, options.image_rank or options.rank, options.size, options.causal, options.functions, options.share,
        )  # fmt: skip
        weight = self.lora_A.weight
        self.lora_image_kernel = kernel.to(device=weight.device, dtype=weight.dtype)

    def image(self, z_Nr: Tensor) -> Tensor:
        """Gather the taps in the sequence and run the kernel."""
        now = self.sequences.now
        assert now is not None
        rows, length = now.is_image_BT.shape
        z_BTr = z_Nr.new_zeros(rows * length, z_Nr.shape[1]).index_copy(0, now.place_N, z_Nr)
        padded_BSr = self.sequences.prepend(self.number, z_BTr.view(rows, length, -1))
        taps_NKr = padded_BSr.flatten(0, 1)[now.tap_NK] * now.inside_NK[..., None]
        return self.lora_image_kernel(taps_NKr)


METHODS: dict[str, Callable[[nn.Linear, Options, Sequences], Adapted]] = {
    "lateral": Lateral,
    "two-linear": ByModality,
    "shared-linear": Shared,
    "moe-lora": Experts,
}


def _added(y_BTO: Tensor, places_N: Tensor, delta_NO: Tensor) -> Tensor:
    """y with rows added at places of the flattened batch."""
    return y_BTO.flatten(0, 1).index_add(0, places_N, delta_NO.to(y_BTO.dtype)).view_as(y_BTO)


def parameters(options: Options, width_in: int, width_out: int) -> int:
    """Learned numbers of one adapted layer of a width."""
    both = width_in + width_out
    if options.method == "shared-linear":
        return options.rank * both
    if options.method == "moe-lora":
        return options.experts * (options.rank * both + width_in)
    image_rank = options.image_rank or options.rank
    total = (0 if options.freeze_text else options.rank * both) + image_rank * both
    if options.method == "lateral":
        total += bottleneck.parameters(
            options.kernel, image_rank, options.size, options.causal, options.functions, options.share
        )
    return total
