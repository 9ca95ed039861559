"""Students: fewer experts per token, fewer layers, or a narrower FFN, of the MoE or of the dense parent.

Shapes: D model width, F FFN width, M neurons that stay, T tokens.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moesaic.data.sampler import in_turn
from moesaic.errors import InputError
from moesaic.model import families
from moesaic.model.depth import expand

if TYPE_CHECKING:
    from moesaic.train.streams import Stream


def make(model: Any, settings: dict[str, Any], stream: "Stream | None") -> Any:
    """A student from a loaded model (which is changed and returned).

    Args:
        settings: schema.Student as a dict. stream: training rows, on which a narrower FFN's neurons are chosen; None where `ffn` is null.

    Raises:
        InputError: more experts per token than there are, experts asked of a dense student, or layers that do not exist.
    """
    if settings["per_token"] is not None:
        if not families.is_moe(model):
            raise InputError(
                "distill.student.per_token: a dense student has no experts; leave it out or set distill.student.of to moe"
            )
        _fewer_experts(model, settings["per_token"])
    if settings["drop_layers"]:
        _drop_layers(model, settings["drop_layers"])
    if settings["ffn"] is not None:
        assert stream is not None
        _narrower_ffn(model, settings["ffn"], _ids(stream, settings["pruning_rows"]))
    return model


def check_teacher(teacher: Any, student: Any) -> None:
    """Refuse a teacher of another vocabulary: its probabilities mean nothing to the student."""
    check_vocabularies(teacher.config.vocab_size, student.config.vocab_size)


def check_vocabularies(teacher: int, student: int) -> None:
    """The same, by the sizes."""
    if teacher != student:
        raise InputError(
            f"distill.teacher: its vocabulary has {teacher} tokens, the student's {student}; probabilities of tokens can be compared in one vocabulary only"
        )


@torch.no_grad()
def _fewer_experts(model: Any, per_token: int) -> None:
    """Top-k weights always sum to 1, so with fewer experts each would weigh more: scale them so that each keeps its mean weight.

    Of copies (experts.split: copy, drop) those chosen beyond one FFN are its mean already, and weigh no less when they are fewer (experts/scale.py).
    """
    before = model.config.num_experts_per_tok
    if per_token > before:
        raise InputError(
            f"distill.student.per_token: {per_token} is more than the model's {before}; a student runs fewer experts, not more"
        )
    families.set_per_token(model, per_token)
    most = getattr(model.config, families.PIECES, before)
    share = min(per_token, most) / min(before, most)
    for part in families.parts(model):
        part.experts.down_proj.mul_(share)
    factors = getattr(model.config, families.FACTORS, None)
    if factors:  # what `moesaic merge` divides by
        setattr(model.config, families.FACTORS, [own * share for own in factors])


def _ids(stream: "Stream", count: int) -> list[Tensor]:
    """The first rows of all domains in turn, [1, T] each."""
    rows = stream.rows(in_turn(stream.sizes, count))
    return [torch.from_numpy(row.ids.astype("int64"))[None] for row in rows]


@torch.no_grad()
def _narrower_ffn(model: Any, width: int, texts: list[Tensor]) -> None:
    """Keep the neurons that write most to the residual stream: root mean square of the activation times the norm of the neuron's output column.

    Activation-based width pruning (Minitron, Muralidharan et al., arXiv 2407.14679, section 2.2; the output norm makes it the neuron's contribution).
    Each layer keeps exactly `width` neurons, in their old order.
    """
    if families.is_moe(model):
        raise InputError(
            "distill.student.ffn: an MoE student has experts instead of one FFN; set distill.student.of to dense, or per_token for fewer experts"
        )
    before = model.config.intermediate_size
    if width > before:
        raise InputError(f"distill.student.ffn: {width} is more than the model's {before} neurons")
    score_LF = _contributions(model, texts)
    for layer, score_F in zip(model.model.layers, score_LF, strict=True):
        kept_M = score_F.argsort(descending=True, stable=True)[:width].sort().values
        mlp = layer.mlp
        for part, dim in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
            part.weight = nn.Parameter(part.weight.index_select(dim, kept_M).contiguous())
        mlp.gate_proj.out_features = mlp.up_proj.out_features = mlp.down_proj.in_features = width
        mlp.intermediate_size = width
    config = copy.deepcopy(model.config)
    config.intermediate_size = width
    model.config = model.model.config = config


def _contributions(model: Any, texts: list[Tensor]) -> Tensor:
    """RMS activation times output norm of every FFN neuron [L, F], over some texts."""
    downs = [layer.mlp.down_proj for layer in model.model.layers]
    squares = [torch.zeros(down.in_features, dtype=torch.float64) for down in downs]

    def hook(index: int) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares[index] += inputs[0].flatten(0, -2).double().square().sum(dim=0).cpu()

        return add

    handles = [down.register_forward_pre_hook(hook(i)) for i, down in enumerate(downs)]
    for ids in texts:
        model.base_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    norms = torch.stack([down.weight.double().square().sum(dim=0) for down in downs])
    return (torch.stack(squares) * norms).sqrt()


def _drop_layers(model: Any, dropped: list[int]) -> None:
    count = model.config.num_hidden_layers
    wrong = [layer for layer in dropped if layer >= count]
    if wrong or len(set(dropped)) >= count:
        raise InputError(
            f"distill.student.drop_layers: {dropped} cannot be dropped from {count} layers (numbered from 0, at least one stays)"
        )
    kept = [index for index in range(count) if index not in set(dropped)]
    expand.relabel(model, [model.model.layers[index] for index in kept], kept)
