"""The page of `moesaic plan`, from the plans of the variants."""

from collections.abc import Iterable, Mapping

from moesaic.experts.room import Room
from moesaic.plan import GPU_MEMORY_GB, Hardware, Plan, Stage
from moesaic.plan_sampling import Sampling
from moesaic.train.memory import BILLION


def text(plans: list[Plan], machine: Hardware) -> str:
    """The plan as a page of text."""
    lines = []
    for plan in plans:
        lines += [
            f"variant {plan.variant}: {plan.architecture} ({plan.why})",
            f"  parameters    {_count(plan.moe.total)} total, {_count(plan.moe.active)} active for a token; dense parent {_count(plan.dense.total)}",
        ]
        if plan.disk is not None:
            lines += _room(plan.disk)
        for stage in plan.stages:
            hours = stage.hours(machine)
            money = f", {hours * machine.price:,.0f} at {machine.price:g} a GPU-hour" if machine.price else ""
            most = GPU_MEMORY_GB[machine.gpu]
            fits = (
                ""
                if stage.memory_gb["total"] <= most
                else f"  MORE THAN THE {most:.0f} GB OF ONE {machine.gpu}"
            )
            lines += _sampling(stage.sampling, stage.name)
            most_tokens = "at most " if stage.sampling else ""
            lines += [
                f"  {stage.name}",
                f"    tokens      {most_tokens}{stage.tokens:,} in {stage.steps:,} steps of {stage.tokens // max(1, stage.steps):,}",
                f"    FLOPs       {stage.flops:.3g}, of active weights and attention{_layers(stage)}",
                f"    time        {hours:,.1f} GPU-hours of training on {machine.gpu} at {machine.mfu:.0%} of its peak"
                f" = {hours / machine.gpus:,.1f} h on {machine.gpus}{money}",
                f"    memory      {stage.memory_gb['total']:.1f} GB per GPU ({_parts(stage.memory_gb)}){fits}",
            ]
            if stage.uneven:
                lines.append(
                    f"    BATCH       {stage.uneven}: training would refuse to begin; change one of the three"
                )
        for item in plan.caches:
            lines += [
                f"  teacher cache of {item.stage}",
                f"    on disk     {item.bytes_per_token} bytes per token before compression ({item.top} likeliest, {item.tail} drawn)"
                f" = {item.gigabytes:,.2f} GB for as many tokens as the stage trains on;",
                "                the cache holds all training and validation rows of its data, or `offline.max_rows` of each set",
                f"    FLOPs       {item.flops:.3g}, of the teacher's forward pass",
            ]
    return "\n".join(lines) + "\n"


def _room(room: Room) -> list[str]:
    """What the construction takes on the disk."""
    trace, stream, model = (value / BILLION for value in (room.trace, room.stream, room.model))
    states = f", {trace:,.1f} hidden states of the parent's layers" if room.trace else ""
    return [
        "  construct",
        f"    on disk     {room.total / BILLION:,.1f} GB while it lasts ({model:,.1f} twice the model{states}, {stream:,.1f} between two layers)",
    ]


def _layers(stage: Stage) -> str:
    return (
        ""
        if stage.layers is None
        else f", {stage.layers} layers; the FFNs that run for labels only are not in it"
    )


def _count(number: int) -> str:
    return f"{number / BILLION:.2f}B" if number >= 5e8 else f"{number / 1e6:.1f}M"


def _sampling(items: Iterable[Sampling], stage: str) -> list[str]:
    """What a stage samples and scores before its training."""
    out = []
    for item in items:
        each = f"{item.tokens_each:,} tokens, {item.flops_each:.3g} FLOPs, {item.bytes_each:,} bytes on disk"
        if item.total is None:
            what = f"{item.answers} to each question, of which the data say how many; each at most {each}"
        else:
            rounds = f" x {item.rounds} rounds" if item.rounds > 1 else ""
            what = (
                f"{item.questions:,} questions x {item.answers}{rounds} = {item.total:,}; at most {item.total * item.tokens_each:,} tokens, "
                f"{item.total * item.flops_each:.3g} FLOPs, {item.total * item.bytes_each / BILLION:.2f} GB on disk"
            )
        out += [
            f"  {stage}: {item.name}",
            f"    at most     {what}",
            f"    memory      {item.memory_gb['total']:.1f} GB per GPU ({_parts(item.memory_gb)})",
        ]
    return out


def _parts(memory_gb: Mapping[str, float]) -> str:
    """What of a GPU's memory is for what; nothing of less than 0.05 GB."""
    return ", ".join(
        f"{name} {value:.1f}" for name, value in memory_gb.items() if name != "total" and value >= 0.05
    )
