"""What the stock routers and experts do not do by themselves while they are trained: noise, capacity, a learned scale, a bias that is updated, a tanh gate,
dropout inside experts.

Forward hooks on the stock routers; nothing of it is in the saved model, whose routers stay what the architecture says. The learned scale is
folded into the down projections at the end; LLaMA-MoE's gate of two layers cannot be folded, and a model that has it cannot be saved.

Shapes: T tokens, D model width, L MoE layers, E experts, K experts per token.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model import draws, families
from moesaic.model.depth import skip
from moesaic.train import balance
from moesaic.train.balance import bias
from moesaic.train.balance.base import Decision

NOISE_FLOOR = 1e-2
"""Smallest standard deviation of the learned noise (LLaMA-MoE's gate_noise_epsilon)."""

EXPORT = (
    "router.gate: a tanh gate of two layers is for comparisons only: no architecture of transformers has a place for its second layer, so the "
    "model cannot be saved; set router.gate: linear for a model that is kept"
)

DEFAULTS: dict[str, Any] = {
    "balance": "switch", "bias_rate": 1e-3, "noise": "none", "capacity": None, "learn_scale": False, "gate": "linear", "frozen": False,
    "expert_dropout": 0.0,
}  # fmt: skip


class Policy(nn.Module):
    """The routers of a model in training. Parameters: the noise's weights and the scales, where they are asked for."""

    parts: list[families.Parts]

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]):
        """Hook onto the routers.

        Args:
            settings: schema.RouterTraining as a dict.

        Raises:
            InputError: a method that the architecture cannot carry, or that has no gradient.
        """
        super().__init__()
        self.settings = settings
        # not registered: they are the model's
        object.__setattr__(self, "parts", list(families.parts(model)))
        skips = skip.layers(model)
        self.skips = [skips.get(part.layer) for part in self.parts]
        routers = [part.router for part in self.parts]
        if settings["balance"] == "bias":
            bias.check(routers)
        count = len(routers)
        self.noise_LED = (
            nn.Parameter(torch.zeros(count, *routers[0].weight.shape))
            if settings["noise"] == "learned"
            else None
        )
        self.scale_L = nn.Parameter(torch.ones(count)) if settings["learn_scale"] else None
        # LLaMA-MoE's gate is W2 tanh(W1 x) without biases; W1 is the stock router, and with W2 = 1 small logits are what they were
        self.second_LEE = (
            nn.Parameter(torch.eye(len(routers[0].weight)).repeat(count, 1, 1))
            if settings["gate"] == "tanh"
            else None
        )
        self.decisions: dict[int, Decision] = {}
        self.dropped = torch.zeros(())
        self.recording = False
        """Of the forward pass, not of one that gradient checkpointing repeats: what is kept of that holds its whole graph until the next one."""
        self.seed = 0
        self.valid_T: Tensor | None = None
        weight = routers[0].weight
        self.experts = int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 holds a piece of it
        for layer, router in enumerate(routers):
            router.register_forward_hook(self._hook(layer))
            router.requires_grad_(router.weight.requires_grad and not settings["frozen"])
        if settings["expert_dropout"]:
            if model.config._experts_implementation == "eager":  # type: ignore[union-attr]
                raise InputError(
                    "router.expert_dropout: needs transformers' grouped or batched experts, not eager ones"
                )
            for layer, part in enumerate(self.parts):
                part.experts._apply_gate = self._thin(layer, part.experts._apply_gate)

    def begin(self, valid_T: Tensor | None, seed: int) -> None:
        """Before a forward pass.

        Args:
            valid_T: True for tokens that count; None counts all. seed: of the noise; the same seed gives the same noise, whatever was drawn before,
            so that resumed runs and recomputed activations see what the first pass saw.
        """
        self.valid_T, self.seed = valid_T, seed
        self.decisions, self.dropped, self.recording = {}, torch.zeros(()), True

    def terms(self) -> balance.RouterTerms:
        """Losses and figures of the forward pass, which ends here; a layer that every token skipped has no part in the means."""
        self.recording = False
        made = [i for i in sorted(self.decisions) if len(self.decisions[i].logits_TE)]
        if len(made) == len(self.parts):
            return balance.router_terms([self.decisions[i] for i in made], self.settings["balance"])
        device = self.parts[0].router.weight.device
        load_LE = torch.zeros(len(self.parts), self.experts, device=device)
        nothing = torch.zeros((), device=device)
        if not made:
            return balance.RouterTerms(nothing, nothing, load_LE, nothing)
        terms = balance.router_terms([self.decisions[i] for i in made], self.settings["balance"])
        load_LE[made] = terms.load_LE
        return balance.RouterTerms(terms.balance, terms.z, load_LE, terms.entropy)

    def after_step(self, load_LE: Tensor) -> None:
        """Args: load_LE: token slots of the whole optimizer step, over all ranks."""
        if self.settings["balance"] == "bias":
            bias.update([part.router for part in self.parts], load_LE, self.settings["bias_rate"])

    @torch.no_grad()
    def fold(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Put the learned scales into the down projections; the model computes the same without them.

        Args:
            weights: the whole tensors of `model` by name, and `policy.scale_L`: an engine's copies (DeepSpeed trains another one than
            the modules hold), or the model's own. Changed in place.

        Raises:
            InputError: a gate of two layers, which no stock architecture has a place for.
        """
        if self.second_LEE is not None:
            raise InputError(EXPORT)
        if self.scale_L is None:
            return
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        scale_L = weights["policy.scale_L"]
        for part, scale in zip(self.parts, scale_L, strict=True):
            weights[names[id(part.experts.down_proj)]].mul_(scale)
        scale_L.fill_(1.0)

    def _hook(self, layer: int) -> Any:
        def decide(
            router: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]
        ) -> tuple[Tensor, Tensor, Tensor]:
            logits_TE, weight_TK, index_TK = output
            skipping = self.skips[layer]
            if skipping is not None and skipping.probing:  # for a label: no part of what the model computes
                if self.scale_L is not None:
                    weight_TK = weight_TK * self.scale_L[layer].to(weight_TK)
                return logits_TE, weight_TK, index_TK
            noisy_TE = sigma_TE = None
            if self.second_LEE is not None:
                logits_TE = logits_TE.float().tanh() @ self.second_LEE[layer].T
                index_TK, weight_TK = _choose(
                    router, logits_TE, self.parts[layer].family.scores, weight_TK.dtype
                )
            if self.training and self.noise_LED is not None:
                x_TD = inputs[0].reshape(-1, inputs[0].shape[-1])
                sigma_TE = (
                    functional.softplus((x_TD @ self.noise_LED[layer].T.to(x_TD)).float()) + NOISE_FLOOR
                )
                noisy_TE = logits_TE.float() + sigma_TE * self._normal(logits_TE, layer)
                index_TK, weight_TK = _choose(
                    router, noisy_TE, self.parts[layer].family.scores, weight_TK.dtype
                )
            valid_T = self.valid_T
            if skipping is not None and valid_T is not None:
                valid_T = skipping.narrow(valid_T)
            kept = slice(None) if valid_T is None else valid_T

            def where(values: Tensor | None) -> Tensor | None:
                return None if values is None else values[kept].float()

            # made in a repeated pass too, which must save as many tensors as the first one
            decision = Decision(
                logits_TE[kept].float(),
                index_TK[kept],
                weight_TK[kept].float(),
                self.parts[layer].family.scores,
                where(noisy_TE),
                where(sigma_TE),
                getattr(router, "e_score_correction_bias", None),
            )
            if self.recording:
                self.decisions[layer] = decision
            if self.training and self.settings["capacity"] is not None:
                weight_TK = self._drop(weight_TK, index_TK, logits_TE.shape[1], valid_T)
            if self.scale_L is not None:
                weight_TK = weight_TK * self.scale_L[layer].to(weight_TK)
            return logits_TE, weight_TK, index_TK

        return decide

    def _thin(self, layer: int, inner: Any) -> Any:
        """Dropout on the experts' inner activations [S, M] of all token slots, seeded as the noise is."""
        rate = self.settings["expert_dropout"]

        def activate(gate_up_SF: Tensor) -> Tensor:
            found_SM: Tensor = inner(gate_up_SF)
            if not self.training:
                return found_SM
            generator = draws.generator(found_SM.device, self.seed, layer + 2048)
            kept_SM = torch.rand(found_SM.shape, generator=generator, device=found_SM.device) >= rate
            return found_SM * kept_SM / (1.0 - rate)

        return activate

    def _normal(self, like: Tensor, layer: int) -> Tensor:
        generator = draws.generator(like.device, self.seed, layer)
        return torch.randn(like.shape, generator=generator, device=like.device)

    def _drop(self, weight_TK: Tensor, index_TK: Tensor, experts: int, valid_T: Tensor | None) -> Tensor:
        """Weight 0 for the slots beyond an expert's capacity, those of lowest weight first."""
        tokens = len(weight_TK) if valid_T is None else int(valid_T.sum())
        capacity = math.ceil(self.settings["capacity"] * tokens * weight_TK.shape[1] / experts)
        weight_S, index_S = weight_TK.detach().flatten().clone(), index_TK.flatten()
        if valid_T is not None:
            weight_S[~valid_T.repeat_interleave(weight_TK.shape[1])] = -1.0  # padding takes no room
        order = weight_S.argsort(descending=True, stable=True)
        order = order[index_S[order].argsort(stable=True)]
        count_E = torch.bincount(index_S, minlength=experts)
        start_E = count_E.cumsum(0) - count_E
        place_S = torch.empty_like(index_S)
        place_S[order] = torch.arange(len(order), device=order.device) - start_E[index_S[order]]
        over_S = place_S >= capacity
        if self.recording:
            self.dropped = self.dropped + (over_S & (weight_S >= 0)).sum().cpu()
        return weight_TK.masked_fill(over_S.view_as(weight_TK), 0.0)


def _choose(router: Any, noisy_TE: Tensor, scores: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The stock routers' choice, made on noisy logits: indices and weights [T, K]."""
    if scores == "sigmoid":
        biased_TE = noisy_TE.sigmoid() + router.e_score_correction_bias
        index_TK = biased_TE.topk(router.top_k, dim=1).indices
    else:
        index_TK = noisy_TE.topk(router.top_k, dim=1).indices
    weight_TK = families.chosen_weights(noisy_TE.gather(1, index_TK), scores)
    return index_TK, (weight_TK * getattr(router, "routed_scaling_factor", 1.0)).to(dtype)
