"""Ranks, devices, backward, clipping and the optimizer: plain torch in one process, DDP in several, through accelerate."""

import contextlib
import datetime
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model import execution, families, grouped, norms
from moesaic.model.depth import skip
from moesaic.train.clock import Clock
from moesaic.train.schedule import learning_rate

log = logging.getLogger("moesaic.engine")
PATIENCE = datetime.timedelta(hours=3)
"""How long a rank waits for another before it gives up: rank 0 writes checkpoints of a hundred gigabytes, and NCCL's own ten minutes are too few for that."""


class Engine:
    """Wraps a Trainee. Everything that depends on the number of ranks is here."""

    def __init__(self, trainee: Any, settings: Mapping[str, Any], wrap: bool = True):
        """Args: settings: schema.Training as a dict. wrap: False leaves that to another engine."""
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        grouped.register()
        cuda = torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision="bf16" if cuda and torch.cuda.is_bf16_supported() else "no",
            # DDP would lay out its buckets anew after the first step of a process, and with more than two ranks the layout decides the order of
            # summation: a resumed run would differ in the last bit. It does not do so while it looks for unused parameters.
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.clock = Clock(self.device)
        self.settings, self.steps = settings["optimizer"], settings["steps"]
        # of the model as it came, and as it is saved: DeepSpeed casts it
        self.dtypes = {name: p.dtype for name, p in trainee.model.named_parameters()}
        if self.settings["freeze_embeddings"]:
            for module in (trainee.model.get_input_embeddings(), trainee.model.get_output_embeddings()):
                module.weight.requires_grad_(False)
        execution.apply(trainee.model, settings["engine"].get("experts", "auto"), self.device)
        if settings["engine"]["gradient_checkpointing"]:
            trainee.model.gradient_checkpointing_enable({"use_reentrant": False})
        if trainee.teacher is not None:
            trainee.teacher.to(self.device).requires_grad_(False)
            execution.apply(trainee.teacher.model, "auto", self.device)
        self.trainee = trainee.to(self.device)
        norms.apply(self.trainee)
        self.wrapped = self.accelerator.prepare_model(self.trainee) if wrap else self.trainee
        self.parameters = {name: p for name, p in self._named() if p.requires_grad}
        routers = router_parameters(self.trainee)
        if self.settings["routers_first"] and not any(id(p) in routers for p in self.parameters.values()):
            raise InputError(
                f"optimizer.routers_first: {self.settings['routers_first']} steps in which only the routers are trained, and this model has none to train; set it to 0"
            )
        self.optimizer = adamw(self.parameters, self.settings, routers, wrap, places(self.trainee))

    @property
    def main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def forward_backward(self, batch: Any, last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and statistics of one micro-batch; gradients add up, ranks meet on the last one of a step."""
        sync = contextlib.nullcontext() if last or self.world == 1 else self.accelerator.no_sync(self.wrapped)
        with sync:
            with self.clock.phase("forward"):
                loss, statistics = self.wrapped(batch)
            # DDP averages over ranks, while the loss is already divided by the targets of all of them.
            # The ranks' exchange of gradients is in it, as far as it is not hidden.
            with self.clock.phase("backward"):
                self.accelerator.backward(loss * self.world)
        return loss.detach(), statistics

    def step(self, step: int, share: float | None = None) -> tuple[float, float]:
        """Clip, update, clear. Returns the gradient norm before clipping and the learning rate. Args: share: as of schedule.learning_rate."""
        with self.clock.phase("optimizer"):
            return self._update(step, share)

    def _update(self, step: int, share: float | None) -> tuple[float, float]:
        norm: Any = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings["clip"])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        rate = self.set_rates(self.optimizer, step, share)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm), rate

    def set_rates(self, optimizer: Any, step: int, share: float | None = None) -> float:
        """Give every group its learning rate of a step; returns the schedule's."""
        own = self.settings
        rate = learning_rate(step, self.steps, own["lr"], own["warmup"], own["min_lr"], own["decay"], share)
        factors = self.trainee.depth.factors(own["lr"]) if self.trainee.depth is not None else {}
        for group in optimizer.param_groups:
            waits = step < own["routers_first"] and not group["routers"]
            group["lr"] = 0.0 if waits else rate * factors.get(group["place"], 1.0)
        return rate

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks."""
        return self.accelerator.reduce(values.to(self.device), reduction="sum") if self.world > 1 else values

    def any(self, flag: bool) -> bool:
        """True on all ranks when it is true on one."""
        return bool(self.sum(torch.tensor(float(flag))) > 0) if self.world > 1 else flag

    def share(self, value: Any) -> Any:
        """Rank 0's value on every rank; anything that can be pickled."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Any]:
        """The bare trainee without gradients, in evaluation mode."""
        self.trainee.eval()
        try:
            with torch.no_grad():
                yield self.trainee
        finally:
            self.trainee.train()

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, tied ones once, and the buffers that a saved model holds (a router's bias)."""
        return dict(self._named()) | self.buffers()

    def buffers(self) -> dict[str, Tensor]:
        """Buffers that a saved model holds."""
        model = self.trainee.model
        saved = model.state_dict().keys()
        return {name: buffer for name, buffer in model.named_buffers() if name in saved}

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters, then the routers' own in training (`policy.`)."""
        yield from self.trainee.model.named_parameters()
        if self.trainee.policy is not None:
            for name, parameter in self.trainee.policy.named_parameters():
                yield f"policy.{name}", parameter

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.weights().items():
                tensor.copy_(tensors[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        """Optimizer state as flat named tensors: `parameter/exp_avg`, `parameter/exp_avg_sq`, `parameter/step`."""
        return {
            f"{name}/{key}": value
            for name, p in self.parameters.items()
            for key, value in self.optimizer.state[p].items()
        }

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            parameter, key = name.rsplit("/", 1)
            by_parameter.setdefault(parameter, {})[key] = value
        for name, p in self.parameters.items():
            if name in by_parameter:
                state = by_parameter[name]
                self.optimizer.state[p] = {
                    # DeepSpeed's checkpoints hold float32 beside parameters of any type
                    key: value.to(p.device, p.dtype) if key != "step" else value.to(p.device)
                    for key, value in state.items()
                }


def router_parameters(trainee: Any) -> set[int]:
    """Ids of the routers' parameters, found by module type, and of their noise and scales in training."""
    found = {id(p) for part in families.parts(trainee.model) for p in part.router.parameters()}
    found |= {id(p) for router in skip.routers(trainee.model) for p in router.parameters()}
    return found | ({id(p) for p in trainee.policy.parameters()} if trainee.policy is not None else set())


def places(trainee: Any) -> dict[int, str]:
    """Ids of the parameters that have a learning rate of their own -> which, see depth.steer.Steering."""
    return trainee.depth.places() if trainee.depth is not None else {}


def build(trainee: Any, settings: Mapping[str, Any]) -> Engine:
    """The configured engine. Args: settings: schema.Training as a dict."""
    if settings["engine"]["kind"] == "deepspeed":
        from moesaic.train.engine_deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(trainee, settings)
    if any(p.dtype == torch.bfloat16 for p in trainee.model.parameters() if p.requires_grad):
        log.warning(
            "the trained weights are bfloat16: an update below 1/256 of a weight is lost, and norms may not move at all; "
            "model.dtype: float32 mends it, and products are bfloat16 on a GPU all the same"
        )
    if settings["engine"]["kind"] == "fsdp":
        from moesaic.train.engine_fsdp import FsdpEngine

        return FsdpEngine(trainee, settings)
    return Engine(trainee, settings)


def process_group() -> None:
    """What cuts parameters up wants a process group, even of one."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(
            backend, store=torch.distributed.HashStore(), rank=0, world_size=1
        )


def adamw(
    parameters: Mapping[str, nn.Parameter],
    settings: Mapping[str, Any],
    routers: Collection[int] = (),
    fused: bool = True,
    places: Mapping[int, str] | None = None,
) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, never on norms. Groups with `routers: True` are trained from the first step on.

    Args:
        routers: ids of the parameters that belong to routers. places: ids of those with a learning rate of their own -> its name.
    """
    groups: dict[tuple[bool, bool, str], list[nn.Parameter]] = {}
    for parameter in parameters.values():
        place = (places or {}).get(id(parameter), "")
        groups.setdefault((id(parameter) in routers, parameter.ndim >= 2, place), []).append(parameter)
    listed = [
        {
            "params": members,
            "routers": router,
            "place": place,
            "weight_decay": settings["weight_decay"] if matrix else 0.0,
        }
        for (router, matrix, place), members in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(listed, lr=settings["lr"], betas=tuple(settings["betas"]), fused=fused)
