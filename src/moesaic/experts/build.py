"""Write the model layer by layer in the stock class's own file format, and prove each layer with the stock class's own code.

Three short hidden states walk along: through the dense layers, through the MoE layers with all experts on at unit weight (they must agree:
nothing was lost), and through the MoE layers as they are saved (the model read back at the end must compute the same).

Shapes: T tokens, D model width, S shared neurons, E experts, M neurons per expert, P = S + E M.
"""

import copy
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Ffn
from moesaic.experts.layer import Layer, stacked
from moesaic.flow import files
from moesaic.model import execution, families
from moesaic.model.families import Family, Shape
from moesaic.model.lazy import LazyModel

SHARD_BYTES = 4 * 2**30
"""Largest weight file of the result."""


class Builder:
    """Converted layers as files in `folder`; what is there survives the process."""

    def __init__(
        self,
        dense: LazyModel,
        family: Family,
        shape: Shape,
        folder: Path,
        ids_1T: Tensor,
        factor: float | None = None,
    ):
        """`factor`: the one that all layers have on their routed output, for classes with a field for it; None when they differ."""
        self.dense, self.family, self.shape, self.folder = dense, family, shape, folder
        folder.mkdir(parents=True, exist_ok=True)
        with torch.device("meta"):
            self.shell: Any = families.build(family, dense.config, shape).eval()
        # as `load` does: the proof and the model read back run by the same products
        execution.apply(self.shell, "auto", torch.device("cpu"), logging.DEBUG)
        self.shell.generation_config = _generation_config(dense)
        self.field = 1.0 if factor is None or not family.scale_field else factor
        if family.scale_field:
            self.shell.config.routed_scaling_factor = self.field
        self.proof = self._proof(ids_1T)
        self.positions = dense.positions(ids_1T.shape[1])

    def path(self, index: int) -> Path:
        """The file of a converted layer."""
        return self.folder / f"layer-{index:03}.safetensors"

    def add(self, index: int, block: Any, ffn: Ffn, layer: Layer | None, seed: int) -> None:
        """Convert a layer, run the proofs through it, write it. `layer` None leaves it dense."""
        module = self._module(index)
        hidden = dict(self.proof)
        hidden["dense"] = self._run(block, hidden["dense"])
        if layer is None:
            module.load_state_dict(block.state_dict())
            hidden["all"], hidden["sparse"] = (self._run(module, hidden[name]) for name in ("all", "sparse"))
        else:
            self._copy_attention(module, block)
            fill(self.family, module, *self._everything(ffn, layer.assignment, seed, index))
            hidden["all"] = self._all_on(module, hidden["all"])
            rows = (layer.gate_PD, layer.up_PD, layer.down_PD)
            fill(
                self.family,
                module,
                layer.router_ED,
                layer.bias_E,
                layer.factor / self.field,
                layer.assignment,
                rows,
            )
            self._round(module)
            hidden["sparse"] = self._run(module, hidden["sparse"])
        self._save(index, module)
        with files.atomic_path(self.folder / f"proof-{index + 1:03}.safetensors") as temporary:
            _save_file(hidden, temporary)
        # not the one before this layer: until the walk has noted this layer as done, a kill takes it up from there
        (self.folder / f"proof-{index - 1:03}.safetensors").unlink(missing_ok=True)
        self.proof = hidden

    def resume(self, index: int) -> None:
        """Take up the proofs before layer `index`."""
        from safetensors.torch import load_file

        if index:
            self.proof = load_file(self.folder / f"proof-{index:03}.safetensors")

    def logits(self, name: str) -> Tensor:
        """Logits [T, V] of one of the proofs, after the last layer."""
        norm, head_VD = self.dense.head()
        return norm(self.proof[name])[0] @ head_VD.T

    def rerun(self, model: Any, ids_1T: Tensor) -> Tensor:
        """Logits [T, V] of a loaded model of this class in float32, one layer at a time: never more than one layer of it in that size."""
        config = model.config
        hidden = model.model.embed_tokens.weight[ids_1T].float() * getattr(
            config, "embedding_multiplier", 1.0
        )
        own = model.model.rotary_emb(hidden, position_ids=torch.arange(ids_1T.shape[1])[None])
        for mine, theirs in zip(self.positions, own, strict=True):
            if not torch.allclose(mine, theirs, atol=1e-5):
                raise InputError(
                    f"construct: {type(model).__name__} turns its queries and keys otherwise than the dense parent; this version of transformers reads "
                    "rope_parameters in another way"
                )
        for block in model.model.layers:
            hidden = self._run(copy.deepcopy(block).float(), hidden)
        norm = copy.deepcopy(model.model.norm).float()
        found_TV = functional.linear(norm(hidden)[0], model.get_output_embeddings().weight.float())
        return found_TV / getattr(config, "logits_scaling", 1.0)

    def equivalence(self) -> dict[str, Any]:
        """With all experts on and unit weights the logits must be the dense parent's. Raises InputError when they are not."""
        expected, found = self.logits("dense"), self.logits("all")
        error, largest = float((expected - found).abs().max()), float(expected.abs().max())
        tolerance = largest * 1e-4
        if not error <= tolerance:
            raise InputError(
                f"construct: with all experts on and unit scores the logits differ from the dense model's by {error:.3g} "
                f"(allowed {tolerance:.3g}); the architecture of model.at is not represented exactly"
            )
        return {
            "max_logit_error": error,
            "tolerance": tolerance,
            "max_logit": largest,
            "tokens": int(expected.shape[0]),
        }

    def finish(self, out: Path, tokenizer: Any, keys: dict[str, Any]) -> None:
        """Join the layers with embeddings, norm and head into a model folder, in shards, one layer in memory at a time.

        Args:
            keys: what else the configuration is to hold.
        """
        with files.atomic_path(out) as folder:
            folder.mkdir()
            config = copy.deepcopy(self.shell.config)
            config.architectures = [type(self.shell).__name__]
            for name, value in keys.items():
                setattr(config, name, value)
            config.save_pretrained(folder)
            if self.shell.generation_config is not None:
                self.shell.generation_config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            self._join(folder)

    def _proof(self, ids_1T: Tensor) -> dict[str, Tensor]:
        hidden = self.dense.embedding()[ids_1T]
        return {"dense": hidden, "all": hidden.clone(), "sparse": hidden.clone()}

    def _module(self, index: int) -> Any:
        module = copy.deepcopy(self.shell.model.layers[index]).to_empty(device="cpu").float()
        if self.family.scale_field and (found := self.family.block(module)) is not None:
            found[0].routed_scaling_factor = self.field
        return module.requires_grad_(False)

    def _run(self, module: Any, hidden: Tensor) -> Tensor:
        """A decoder layer of the dense parent's or the stock MoE class."""
        out = module(hidden, position_embeddings=self.positions, attention_mask=None)
        return out[0] if isinstance(out, tuple) else out

    def _all_on(self, module: Any, hidden: Tensor) -> Tensor:
        router = self.family.block(module)[0]  # type: ignore[index]
        router.top_k = self.shape.experts
        out = self._run(module, hidden)
        router.top_k = self.shape.per_token
        return out

    def _everything(self, ffn: Ffn, assignment: Assignment, seed: int, index: int) -> tuple[Any, ...]:
        """Router 0 with all experts on gives each the weight 1 / E; times E that is 1. What several experts hold counts in parts."""
        whole = dataclasses.replace(assignment, fresh_EM=None)
        gate_PD, up_PD, down_PD = stacked(ffn, whole, seed, index)
        times_F = assignment.multiplicity().clamp_min(1)
        shared = assignment.shared_S.numel()
        down_PD[shared:] /= times_F[assignment.routed_EM.flatten()][:, None]
        router_ED = torch.zeros(self.shape.experts, ffn.gate_FD.shape[1])
        bias_E = torch.zeros(self.shape.experts) if self.family.bias else None
        return router_ED, bias_E, self.shape.experts / self.field, whole, (gate_PD, up_PD, down_PD)

    def _copy_attention(self, module: Any, block: Any) -> None:
        for name in ("self_attn", "input_layernorm", "post_attention_layernorm"):
            getattr(module, name).load_state_dict(getattr(block, name).state_dict())

    def _round(self, module: Any) -> None:
        """Weights take the values that the saved dtype can hold, so that the proof is of the saved model."""
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(tensor.to(self.dense.dtype) if tensor.is_floating_point() else tensor)

    def _save(self, index: int, module: Any) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        start = f"model.layers.{index}."
        state = {start + name: tensor.to(self.dense.dtype) for name, tensor in module.state_dict().items()}
        if self.family.bias:
            state = {name: tensor.float() if "bias" in name else tensor for name, tensor in state.items()}
        with files.atomic_path(self.path(index)) as temporary:
            _save_file(revert_weight_conversion(self.shell, state), temporary)

    def _join(self, folder: Path) -> None:
        from safetensors.torch import load_file

        rest = ["model.embed_tokens.weight", "model.norm.weight"]
        rest += [] if self.dense.config.tie_word_embeddings else ["lm_head.weight"]
        sources: list[Any] = [rest, *(self.path(index) for index in range(self.dense.layers))]
        shards: list[list[str]] = []
        part: dict[str, Tensor] = {}

        def flush() -> None:
            shards.append(sorted(part))
            _save_file(part, folder / f"shard-{len(shards):05}")
            part.clear()

        total = 0
        for source in sources:
            found = (
                {name: self.dense.tensor(name) for name in source} if source is rest else load_file(source)
            )
            size = sum(tensor.nbytes for tensor in found.values())
            total += size
            if part and sum(tensor.nbytes for tensor in part.values()) + size > SHARD_BYTES:
                flush()
            part |= found
        flush()
        names: dict[str, str] = {}
        for number, inside in enumerate(shards, start=1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors"
            )
            (folder / f"shard-{number:05}").rename(folder / name)
            names |= dict.fromkeys(inside, name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": names}
            (folder / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=1, sort_keys=True), encoding="utf-8"
            )


@torch.no_grad()
def fill(
    family: Family,
    module: Any,
    router_ED: Tensor,
    bias_E: Tensor | None,
    factor: float,
    assignment: Assignment,
    rows: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Copy one layer's neurons into a stock decoder layer.

    Args:
        factor: on the routed output, beyond what the class has a field for; folded into the down projections.
        rows: gate, up and down [P, D] in the order of reconstruct.columns.
    """
    found = family.block(module)
    assert found is not None, f"a layer of {family.name} without experts"
    router, experts, shared = found
    kept, (count, neurons) = assignment.shared_S.numel(), assignment.routed_EM.shape
    gate_EMD, up_EMD, down_EMD = (part[kept:].view(count, neurons, -1) for part in rows)
    router.weight.copy_(router_ED)
    if family.bias:
        router.e_score_correction_bias.copy_(torch.zeros(count) if bias_E is None else bias_E)
    experts.gate_up_proj.copy_(torch.cat([gate_EMD, up_EMD], dim=1))
    experts.down_proj.copy_(factor * down_EMD.transpose(1, 2))
    if family.set_shared is not None and shared is not None:
        family.set_shared(shared, rows[0][:kept], rows[1][:kept], rows[2][:kept].T)


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"}
    )


def _generation_config(dense: LazyModel) -> Any:
    from transformers import GenerationConfig

    if not (dense.folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(str(dense.folder))
