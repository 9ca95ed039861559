"""The dense parent."""

from typing import Annotated, Any, Literal

from pydantic import Field

from moesaic.schema.base import Strict
from moesaic.schema.data import PackageFile


class ModelFolder(Strict):
    """A model folder on disk."""

    kind: Literal["folder"]
    path: str
    """A folder in Hugging Face format (config.json, *.safetensors, tokenizer)."""


class ModelGguf(Strict):
    """A GGUF file on disk."""

    kind: Literal["gguf"]
    path: str
    """A GGUF file; quantised tensors are dequantised."""


class ModelHub(Strict):
    """A model on the Hugging Face hub (or in its cache)."""

    kind: Literal["hub"]
    repository: str
    """Model id, e.g. meta-llama/Llama-3.2-1B."""
    revision: str | None = None
    """Commit or tag; pin it for a reproducible run."""


ModelSource = Annotated[PackageFile | ModelFolder | ModelGguf | ModelHub, Field(discriminator="kind")]


class Model(Strict):
    """The dense parent."""

    at: ModelSource
    """Where the dense parent is: any LLaMA-shaped decoder."""
    tokenizer: str | None = None
    """Folder of a tokenizer that belongs to the model, when it lies elsewhere."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights on disk and in memory. On CPUs without native bfloat16, float32 is about 150 times faster."""
    chat_template: str | None = None
    """For parents without one: chatml (for tokenizers with its tokens im_start and im_end), tulu (turns end with the end-of-sequence token, which all have), or a path of a Jinja file."""
    name: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """What the parent is called on model hubs, such as HuggingFaceTB/SmolLM2-135M-Instruct, for the card of an exported model; null: from the source."""
    license: str | None = None
    """The parent's licence as hubs write it, such as apache-2.0, for the card; null: from the parent's own card or GGUF file."""
    shape: dict[str, Any] | None = None
    """Fields of the parent's config.json (hidden_size, intermediate_size, num_hidden_layers, ...), for `moesaic plan` where the parent is out of reach."""
