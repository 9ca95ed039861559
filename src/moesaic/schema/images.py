"""Images as tokens: where pictures and captions come from, how they are cut into codes, which records are kept."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Positive, Strict
from moesaic.schema.data import LocalFiles, PackageFile

PACKAGE_PICTURES = {
    "kind": "npm",
    "package": "emoji-datasource-google",
    "version": "16.0.0",
    "sha256": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
}
"""1911 named pictures of 64 x 64 pixels (Noto Emoji, Apache-2.0)."""


class ImageSource(Strict):
    """Pictures with captions, or whole interleaved records."""

    at: Annotated[PackageFile | LocalFiles, Field(discriminator="kind")]
    """The records: .jsonl, .json, .csv or .parquet."""
    format: Literal["captions", "messages"] = "captions"
    """captions: one picture and one text per record; messages: interleaved conversations, see docs/methods/lateral-lora.md."""
    images: PackageFile | None = None
    """The image files, when they lie in a package; null: paths are relative to the folder of the records' file."""
    image: str = "{file_name}"
    """captions: path of the picture, with {field} for fields of the record (metadata.jsonl of an image folder has file_name)."""
    caption: str = "{text}"
    """captions: its text; what is written in capitals throughout is made small."""
    max_records: Positive | None = None
    """Records that are taken; of captions a random part, of messages the first ones."""


class JudgeEndpoint(Strict):
    """A model that scores records, behind any OpenAI-compatible endpoint."""

    url: str
    """Base address; /chat/completions is added."""
    model: str
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it may be unset."""


class ImageFilters(Strict):
    """Which interleaved records are kept, in this order; every drop is counted by reason in stats.json."""

    min_characters: Count = 10
    """Least characters of text in a record."""
    max_characters: Positive = 4000
    """Most characters of text in a record."""
    min_images: Count = 1
    """Least pictures in a record."""
    max_images: Positive = 4
    """Most pictures in a record."""
    min_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = -1.0
    """Least correlation of the colours of two pictures that follow on each other."""
    max_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.995
    """Above it they count as the same picture twice."""
    min_scores: dict[
        Literal["text quality", "image coherence", "text-image agreement", "helpfulness"],
        Annotated[float, Field(ge=0.0, le=5.0)],
    ] = {}
    """Least scores of the judge by aspect."""
    judge: JudgeEndpoint | None = None
    """The model that scores records, for min_scores."""

    @model_validator(mode="after")
    def _judged(self) -> "ImageFilters":
        if self.min_scores and self.judge is None:
            raise ValueError("min_scores: scores need a judge; set judge.url and judge.model")
        return self


class Images(Strict):
    """Pictures for the model: a codebook, its codes as words of the vocabulary, and conversations of text and pictures beside the chat data."""

    sources: Annotated[list[ImageSource], Field(min_length=1)] = [
        ImageSource(
            at=PackageFile.model_validate(PACKAGE_PICTURES | {"file": "package/emoji.json"}),
            images=PackageFile.model_validate(PACKAGE_PICTURES | {"file": "package/img/google/64/*.png"}),
            image="package/img/google/64/{image}",
            caption="{name}",
        )
    ]
    """Default: the named emoji of an npm package."""
    grid: tuple[Positive, Positive] = (8, 8)
    """Rows and columns of patches of every picture."""
    patch: Positive = 4
    """Pixels on a side of a patch."""
    codes: Positive = 256
    """Size of the codebook."""
    turns: Positive = 2
    """captions: pictures of a conversation; drawn and described in turn."""
    draw: str = "Draw {caption}."
    """captions: what asks for a picture."""
    describe: str = "What does this picture show?"
    """captions: what asks for the caption; it stands after the picture."""
    filters: ImageFilters = ImageFilters()

    @model_validator(mode="after")
    def _prompts(self) -> "Images":
        if "{caption}" not in self.draw:
            raise ValueError("draw: must hold {caption}, where the text of the picture comes")
        if not self.describe.strip():
            raise ValueError("describe: is empty; give a question, such as 'What does this picture show?'")
        return self
