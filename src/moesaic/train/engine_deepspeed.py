"""DeepSpeed ZeRO 1, 2 and 3 behind the engine's interface, from a JSON template with Hugging Face's "auto" fields.

Checkpoints are those of engine.py: whole tensors by name, gathered from all ranks, so that a run goes on with another number of ranks, another ZeRO
stage or without DeepSpeed. (DeepSpeed's own checkpoints are sharded by rank and need a converter for that.)
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model.depth import skip
from moesaic.train import engine, zero

STATES = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine(engine.Engine):
    """ZeRO: optimizer states (1), gradients (2) and parameters (3) are cut up over the ranks."""

    def __init__(self, trainee: Any, settings: Mapping[str, Any]):
        """Args: settings: schema.Training as a dict. Raises InputError when DeepSpeed is missing or the stage cannot do what is asked."""
        try:
            os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
            import deepspeed
        except ImportError as error:
            raise InputError(
                "engine.kind: deepspeed is not installed; pip install -e '.[deepspeed]' in the clone, or set engine.kind: torch"
            ) from error
        template = settings["engine"]["json"]
        self.stage = template["zero_optimization"]["stage"]
        if trainee.policy is not None and list(trainee.policy.parameters()):
            zero.check_routers(self.stage)
        if layers := skip.routed(trainee.model):
            zero.check_skipping(self.stage)
            for item in layers.values():
                item.every_gradient = True
        super().__init__(trainee, settings, wrap=False)
        os.environ.setdefault("LOCAL_RANK", str(self.accelerator.local_process_index))
        engine.process_group()
        deepspeed.init_distributed(verbose=False)
        cuda = self.device.type == "cuda"
        bf16 = cuda and torch.cuda.is_bf16_supported()
        self.passes = settings["batch"] // (settings["micro_batch"] * self.world)
        resolved = zero.resolve(
            template, settings["micro_batch"], self.passes, self.world, settings["optimizer"]["clip"], trainee.model.config.hidden_size, bf16, cuda
        )  # fmt: skip
        # In bfloat16 DeepSpeed keeps float32 copies of what is trained, and casts the rest in place.
        cast = resolved["bf16"]["enabled"]
        self.frozen = {
            name: p.detach().cpu().clone()
            for name, p in self._named()
            if self.main and cast and not p.requires_grad and p.dtype != torch.bfloat16
        }
        if self.stage == 3:
            # the head is used by the loss itself, not by a module's forward pass
            deepspeed.zero.register_external_parameter(trainee, trainee.model.get_output_embeddings().weight)
        self.deepspeed, *_ = deepspeed.initialize(
            model=trainee, optimizer=self.optimizer, config=resolved, dist_init_required=False
        )
        self.wrapped = self.deepspeed

    def forward_backward(self, batch: Any, last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """As engine.Engine; DeepSpeed divides by the passes of a step and by the ranks, which is undone here."""
        with self.clock.phase("forward"):
            loss, statistics = self.deepspeed(batch)
        with self.clock.phase("backward"):
            self.deepspeed.backward(loss * (self.world * self.passes))
        if not last:
            self.deepspeed.step()  # counts the pass; weights change on the last one
        return loss.detach(), statistics

    def _update(self, step: int, share: float | None) -> tuple[float, float]:
        rate = self.set_rates(self.deepspeed.optimizer, step, share)
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm()), rate

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Any]:
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield self.deepspeed
        finally:
            self.deepspeed.train()

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors on rank 0 (no names on the others), in float32 where DeepSpeed keeps float32 copies; all ranks must call it."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[str, Tensor] = {}
        for name, parameter in self._named():
            if not parameter.requires_grad:
                with GatheredParameters([parameter], enabled=self.stage == 3):
                    if self.main:
                        kept = self.frozen.get(name)
                        found[name] = parameter.detach().cpu().clone() if kept is None else kept
                continue
            whole = safe_get_full_fp32_param(parameter)
            if self.main:
                found[name] = whole.detach().cpu().view(_shape(parameter)).clone()
        return found | self.buffers() if self.main else {}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._named():
            value = tensors[name].to(self.device)
            with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3), torch.no_grad():
                if self.stage < 3 or self.main:
                    parameter.copy_(value)
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value.float())
        for name, buffer in self.buffers().items():
            buffer.copy_(tensors[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        inner = self.deepspeed.optimizer.optimizer.state
        steps = {float(state["step"]) for state in inner.values() if "step" in state}
        assert len(steps) <= 1, f"parameters were updated {sorted(steps)} times"
        found: dict[str, Tensor] = {}
        if steps:
            self._link()
        for name, parameter in self.parameters.items():
            if steps:
                found[f"{name}/step"] = torch.tensor(next(iter(steps)))
                for key in STATES:
                    value = safe_get_full_optimizer_state(parameter, key)
                    if self.main:
                        found[f"{name}/{key}"] = value.detach().cpu().view(_shape(parameter)).clone()
        return found

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        steps = {float(value) for name, value in tensors.items() if name.endswith("/step")}
        assert len(steps) == 1, f"parameters were updated {sorted(steps)} times"
        optimizer = self.deepspeed.optimizer
        for group in optimizer.optimizer.param_groups:
            for flat in group["params"]:
                optimizer.optimizer.state[flat] = {
                    "step": torch.tensor(next(iter(steps))),
                    **{key: torch.zeros_like(flat) for key in STATES},
                }
        self._link()
        for name, parameter in self.parameters.items():
            for key in STATES:
                if f"{name}/{key}" in tensors:  # none of a parameter that never had a gradient
                    safe_set_full_optimizer_state(parameter, tensors[f"{name}/{key}"].to(self.device), key)

    def _link(self) -> None:
        """Let parameters find their piece of the optimizer's state. DeepSpeed does it once, after the first group's first step, when the
        states of the other groups are not there yet (seen in 0.19)."""
        if self.stage < 3:
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape, which ZeRO-3 keeps beside a piece of it."""
    return getattr(parameter, "ds_shape", parameter.shape)
