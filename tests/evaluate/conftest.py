"""A finished `reliability` step and a tiny model to ask, for the tests of the suite and of the routers under shifted text."""

import pytest
from reliability_inputs import SENTENCES
from tiny import tiny_llama

from moesaic.flow import manifest, step
from moesaic.schema import Reliability


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished step in a project folder; the working directory is the project's."""
    root = tmp_path_factory.mktemp("project")
    sets = root / "sets"
    sets.mkdir()
    text = "sentence,label\n" + "".join(f"{row['sentence']},{row['label']}\n" for row in SENTENCES)
    (sets / "sentences.csv").write_text(text)
    head = (
        "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    )
    rows = "".join(f"a,b,Does thing {i} grow?,No,Yes,No; Never,Yes; Always,c\n" for i in range(6))
    (sets / "TruthfulQA.csv").write_text(head + rows)
    values = Reliability(
        sets=["sentences", "truthfulqa", "lookalikes", "cona"],
        folder=str(sets),
        items=6,
        texts=5,
        answer_tokens=4,
    ).model_dump(mode="json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        out = root / "results/prepare/reliability"
        relative = out.relative_to(root)
        step.execute(step.STEPS["reliability"], {"reliability": values}, {}, relative)
        yield manifest.read(relative)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(max_position_embeddings=1024)
