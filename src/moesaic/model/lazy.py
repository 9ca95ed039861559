"""A saved dense model read one decoder layer at a time: the memory of one layer, whatever the model's size.

Shapes: B sequences, T tokens, D model width, V vocabulary.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.experts.features import Ffn
from moesaic.model import load


class LazyModel:
    """The parts of a LLaMA-shaped model in float32, read from safetensors when asked for."""

    def __init__(self, folder: Path, key: str = "model"):
        from transformers import AutoConfig, AutoModelForCausalLM

        load.check_folder(folder, key)
        self.folder, self.key = folder, key
        self.config: Any = AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            self.shell: Any = AutoModelForCausalLM.from_config(self.config, attn_implementation="sdpa").eval()
        self.dtype: torch.dtype = self.config.dtype or torch.float32
        self.files = _index(folder, key)
        self.rotary = type(self.shell.model.rotary_emb)(self.config)
        self._embedding: Tensor | None = None

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    def tensor(self, name: str) -> Tensor:
        """A stored tensor, in the stored dtype. Raises InputError for a missing or damaged one."""
        from safetensors import SafetensorError, safe_open

        if name not in self.files:
            raise InputError(f"{self.key}: {self.folder} lacks the weights {name}")
        try:
            with safe_open(self.files[name], framework="pt") as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise load.damaged(self.key, self.files[name], error) from error

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """Everything of a decoder layer by its name within the layer, in the stored dtype."""
        start = f"model.layers.{index}."
        return {name.removeprefix(start): self.tensor(name) for name in self.files if name.startswith(start)}

    def layer(self, index: int) -> Any:
        """A decoder layer with its weights, float32. Raises InputError for weights that are NaN or infinite."""
        block = copy.deepcopy(self.shell.model.layers[index])
        tensors = {name: tensor.float() for name, tensor in self.layer_tensors(index).items()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"{self.key}: {self.folder}: model.layers.{index}.{name} holds NaN or infinite values; the checkpoint is damaged"
                )
        block.load_state_dict(tensors, assign=True)
        return block.requires_grad_(False)

    def embedding(self) -> Tensor:
        """Token embeddings [V, D], float32, kept in memory."""
        if self._embedding is None:
            self._embedding = self.tensor("model.embed_tokens.weight").float()
        return self._embedding

    def head(self) -> tuple[Any, Tensor]:
        """The last norm and the output matrix [V, D], float32."""
        norm = copy.deepcopy(self.shell.model.norm)
        norm.load_state_dict({"weight": self.tensor("model.norm.weight").float()}, assign=True)
        tied = self.config.tie_word_embeddings
        return norm.requires_grad_(False), self.embedding() if tied else self.tensor("lm_head.weight").float()

    def positions(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding for positions 0 .. T - 1."""
        cos, sin = self.rotary(torch.zeros(1, 1), position_ids=torch.arange(tokens)[None])
        return cos, sin


def ffn_of(block: Any) -> Ffn:
    """The FFN weights of a dense decoder layer."""
    mlp = block.mlp
    return Ffn(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)


def attend(block: nn.Module, hidden_BTD: Tensor, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The attention half of a decoder layer: (hidden states after it, normed input of the FFN), both [B, T, D]; causal, no padding."""
    layer: Any = block
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden_BTD), position_embeddings=positions, attention_mask=None
    )
    after = hidden_BTD + attended
    return after, layer.post_attention_layernorm(after)


def _index(folder: Path, key: str) -> dict[str, Path]:
    """The file of each tensor. Raises InputError for a shard that is missing or cannot be read."""
    from safetensors import SafetensorError, safe_open

    listed = load.listed(folder, key)
    if listed is not None:
        return listed
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as handle:
                found |= dict.fromkeys(handle.keys(), file)
        except SafetensorError as error:
            raise load.damaged(key, file, error) from error
    return found
