"""FSDP2 behind the engine's interface: parameters, gradients and optimizer states are cut up over the ranks, decoder layer by decoder layer.

Checkpoints are those of engine.py: whole tensors by name, which any number of ranks and any engine takes up.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.model.depth import skip
from moesaic.train import engine


class FsdpEngine(engine.Engine):
    """torch.distributed.fsdp.fully_shard on every decoder layer, and on the rest as a whole."""

    def __init__(self, trainee: Any, settings: Mapping[str, Any]):
        """Args: settings: schema.Training as a dict."""
        super().__init__(trainee, settings, wrap=False)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        for item in skip.routed(trainee.model).values():
            item.every_gradient = True
        engine.process_group()
        mesh = init_device_mesh(self.device.type, (self.world,))
        bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
        routers = {name for name, p in self._named() if id(p) in engine.router_parameters(trainee)}
        rates = engine.places(trainee)
        named = {name: rates[id(p)] for name, p in self._named() if id(p) in rates}
        for layer in trainee.model.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(trainee, mesh=mesh, mp_policy=policy)
        # what is trained are the pieces now
        self.parameters = {name: p for name, p in self._named() if p.requires_grad}
        own = {id(p) for name, p in self.parameters.items() if name in routers}
        pieces = {id(p): named[name] for name, p in self.parameters.items() if name in named}
        self.optimizer = engine.adamw(self.parameters, self.settings, own, False, pieces)

    def forward_backward(self, batch: Any, last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """As engine.Engine; ranks exchange gradients on the last pass of a step."""
        self.trainee.set_requires_gradient_sync(last)
        with self.clock.phase("forward"):
            loss, statistics = self.trainee(batch)
        with self.clock.phase("backward"):
            (loss * self.world).backward()
        return loss.detach(), statistics

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors on rank 0 (no names on the others); all ranks must call it."""
        self._reshard()
        found = self._gathered(dict(self._named()))
        return found | self.buffers() if self.main else {}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        self._reshard()
        with torch.no_grad():
            for name, parameter in self._named():
                parameter.copy_(self._piece(tensors[name], parameter))
            for name, buffer in self.buffers().items():
                buffer.copy_(tensors[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        return self._gathered(
            {
                f"{name}/{key}": value
                for name, p in self.parameters.items()
                for key, value in self.optimizer.state[p].items()
            }
        )

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if f"{name}/step" in tensors:
                self.optimizer.state[parameter] = {"step": tensors[f"{name}/step"].cpu()} | {
                    key: self._piece(tensors[f"{name}/{key}"], parameter) for key in ("exp_avg", "exp_avg_sq")
                }

    def _gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors in rank 0's memory, gathered one after the other; all ranks must call it."""
        found = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor)
            if self.main:
                found[name] = whole.cpu()
        return found

    def _reshard(self) -> None:
        """Back to pieces: after a forward pass without a backward pass the outermost module still holds whole tensors."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.trainee.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _piece(self, whole: Tensor, like: nn.Parameter) -> Any:
        """This rank's piece of a whole tensor, of the type of `like` and cut as it is."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(whole.to(self.device, like.dtype), like.device_mesh, like.placements)


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
