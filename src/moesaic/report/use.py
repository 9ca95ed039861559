"""How to load and use the best model of a run."""

import os
from collections.abc import Sequence
from html import escape
from typing import Any

from moesaic.flow import store, ui
from moesaic.model.adapters import beside
from moesaic.report import stage_table
from moesaic.report.gather import Gathered, Point

PLAIN = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"


def load_code(path: str, point: Point) -> tuple[str, bool]:
    """Python that loads a model and lets it write, and whether plain transformers is enough for all of it.

    Args:
        path: of the model; an adapter beside it is taken to lie in `adapter/` in the same folder where the model is a folder of its own.
    """
    load = (
        f"{PLAIN}\n"
        f'folder = "{path}"  # {point.label}, {point.model.metrics["architecture"]}\n'
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        'inputs = tokenizer("The capital of France is", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"
    )
    if "share" in point.model.metrics.get("depth", {}):
        load = load.replace(
            PLAIN,
            "from pathlib import Path\n\nfrom transformers import AutoTokenizer\n\nfrom moesaic.model import depth\n",
        ).replace("AutoModelForCausalLM.from_pretrained(folder)", "depth.load(Path(folder))")
        return load, False
    if beside.needed(point.model):
        parts = path.rsplit("/", 1)
        adapter = f"{parts[0]}/{beside.FOLDER}" if parts[-1] == "model" else f"{path}/{beside.FOLDER}"
        load = load.replace(
            PLAIN,
            "from pathlib import Path\n\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nfrom moesaic.model.adapters import attach\n",
        ).replace("\ninputs =", f'\nattach.load(model, Path("{adapter}"))\ninputs =')
        return load, False
    return load, True


def _runs(command: str) -> str:
    """A line for the shell that leads to MLflow. Args: command: of flow/ui.py, which is an address where a server runs."""
    if store.is_http(command):
        return f"# MLflow with all runs: {command}"
    return f"{command}   # MLflow with all runs on http://127.0.0.1:5000"


def html(run: Gathered, found: Sequence[dict[str, Any]]) -> str:
    """The last section: code for the best model of the run."""
    row = stage_table.best(found, run.stages) or found[-1]
    path = row["model"]
    point = next(point for point in run.points if point.label == row["label"])
    load, plain = load_code(path, point)
    if beside.needed(point.model):
        return (
            "<p>The model alone is a plain transformers checkpoint without what was tuned; the adapter beside it needs Moesaic "
            "(plain peft loads its half for text).</p>\n"
            f"<pre><code>{escape(load)}</code></pre>\n"
        )
    export, served = "", path
    if point.variant:
        # with the tensors that vLLM's classes ask for: without them some architectures answer wrongly there, without a word
        export, served = (
            f"moesaic export{_config()} --variant {point.variant} --stage {point.stage} --for vllm OUT  # a copy with a model card, to give away\n",
            "OUT",
        )
    shell = (
        f"lm_eval --model hf --model_args pretrained={path} --tasks piqa,hellaswag\n"
        f"{export}vllm serve {served}\n"
        f"{_runs(ui.command(os.environ.get('MOESAIC_TRACKING_URI')))}\n"
        "moesaic summary # the first table, in the terminal"
    )
    if not plain:
        shell = (
            f"moesaic fold {path} OUT   # a standard model again, where every layer always or never runs\n"
            + "\n".join(shell.split("\n")[-2:])
        )
        return (
            "<p>No class of transformers leaves FFNs out, so this model needs Moesaic to load.</p>\n"
            f"<pre><code>{escape(load)}</code></pre>\n<pre><code>{escape(shell)}</code></pre>\n"
        )
    return (
        f"<p>The models are plain transformers checkpoints; no code of Moesaic is needed to load them.</p>\n"
        f"<pre><code>{escape(load)}</code></pre>\n<pre><code>{escape(shell)}</code></pre>\n"
    )


def _config() -> str:
    """The run's own configuration, which lies in its folder whatever file the user named; nothing outside of a run."""
    own = os.environ.get("MOESAIC_CONFIG")
    return f" --config {own}" if own else ""
