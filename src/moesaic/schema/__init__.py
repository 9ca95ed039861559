"""Every configuration key: type, default, allowed range and one line of help. The JSON schema and the docs come from here."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Strict
from moesaic.schema.corpus import Data
from moesaic.schema.data import (
    Chat,
    ChatSource,
    Clean,
    HubDataset,
    LocalFiles,
    Location,
    Maths,
    PackageFile,
    PythonLibrary,
    Science,
    Source,
    Temporal,
)
from moesaic.schema.depth import Depth, Expand, Skip
from moesaic.schema.evaluate import Evaluate, Track
from moesaic.schema.experts import Experts, layer_numbers
from moesaic.schema.images import Images, ImageSource
from moesaic.schema.model import Model
from moesaic.schema.preference import Preference
from moesaic.schema.reliability import Reliability
from moesaic.schema.teaching import Distill, LossOptions, Offline, Pretrain, Student
from moesaic.schema.training import Mixture
from moesaic.schema.tune import Adapter, Tune

__all__ = [
    "Adapter", "Chat", "ChatSource", "Clean", "Config", "Data", "Depth", "Distill", "Evaluate", "Expand", "Experts", "HubDataset", "ImageSource", "Images", "LocalFiles", "Location", "LossOptions", "Maths", "Mixture", "Model", "Offline", "PackageFile", "Preference", "Pretrain", "PythonLibrary", "Reliability", "Science", "Skip", "Source", "Stage", "Student", "Temporal", "Track", "Tune", "layer_numbers",
]  # fmt: skip

IMAGES = "images"
"""Name of the conversations with pictures among the chat sources."""
Stage = Literal["construct", "pretrain", "tune", "preference", "distill"]


class Config(Strict):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[^/:'\"%]+$")] = "default"
    """Name of the run in MLflow and in the report; without / : ' " %, which MLflow's registry of models refuses."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Every random choice follows from it; below 2^32, the most that scikit-learn takes."""
    stages: list[Stage] = ["construct", "pretrain", "tune", "distill"]
    """Stages to run, in this order; construct is always first."""
    model: Model
    data: Data
    experts: Experts = Experts()
    pretrain: Pretrain = Pretrain()
    tune: Tune = Tune()
    preference: Preference = Preference()
    distill: Distill = Distill()
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Named variants; each overrides keys of experts, pretrain, tune, preference or distill."""
    evaluate: Evaluate = Evaluate()
    track: Track = Track()

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Config":
        order = ["construct", "pretrain", "tune", "preference", "distill"]
        if (
            not self.stages
            or self.stages[0] != "construct"
            or self.stages != sorted(set(self.stages), key=order.index)
        ):
            raise ValueError(
                f"stages must start with construct and keep the order {order}, each at most once"
            )
        if "temporal" in self.evaluate.suites and self.data.temporal is None:
            raise ValueError("evaluate.suites: temporal needs data.temporal; {} takes its defaults")
        if "science" in self.evaluate.suites and self.data.science is None:
            raise ValueError("evaluate.suites: science needs data.science; {} takes its defaults")
        if "reliability" in self.evaluate.suites and self.data.reliability is None:
            raise ValueError("evaluate.suites: reliability needs data.reliability; {} takes its defaults")
        if "preference" in self.stages and self.data.temporal is None:
            raise ValueError(
                "stages: preference samples answers to questions about time and needs data.temporal; {} takes its defaults"
            )
        self._with_images()
        return self

    def _with_images(self) -> None:
        """What pictures and adapters ask of each other and of the stages. Raises ValueError."""
        adapter = self.tune.adapter
        if self.data.images and any(source.name == IMAGES for source in self.data.chat.sources):
            raise ValueError(
                f"data.chat.sources: '{IMAGES}' is the name of the conversations with pictures; take another"
            )
        if adapter is None or "tune" not in self.stages:
            return
        if adapter.routes and self.data.images is None:
            raise ValueError(
                f"tune.adapter: {adapter.method} tells text from pictures and needs data.images; {{}} takes its defaults"
            )
        after = self.stages[self.stages.index("tune") + 1 :]
        if adapter.method not in ("shared-linear", "lora") and after:
            raise ValueError(
                f"stages: {after[0]} cannot go on from tune.adapter {adapter.method}, which no single matrix can hold; end with tune, or take shared-linear or lora"
            )
