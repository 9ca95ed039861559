"""The pictures of howto/mlflow.md, taken by headless Chromium of the MLflow database in the current folder.

After a finished run of the embedded default: python docs/pictures.py
"""

import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from moesaic.flow import store

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "assets" / "mlflow"
WIDTH = 1440
SCORES = [
    f"metrics.`eval/{name}`"
    for name in ("text/average/bits_per_byte", "text/held-out/bits_per_byte", "mc/average/acc")
]
PREPARED = {  # what MLflow keeps in the browser: its mode for training, no assistant
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
TYPE = """(text => {
  const box = [...document.querySelectorAll("input")].find(item => item.placeholder === "Search metric charts");
  if (!text || !box) return;
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(box, text);
  box.dispatchEvent(new Event("input", { bubbles: true }));
})(%s)"""
PATHS = """(() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replace(/\\/\\S*(?=\\/mlartifacts)/, "...");
})()"""
CURRENT = "tags.`moesaic.superseded` = 'false'"

sys.path.insert(0, str(ROOT / "tests" / "report"))


def main() -> None:
    """Start the server, take the pictures (or those that are named), end the server."""
    client, experiment = store.open_experiment("sqlite:///mlflow.db", "moesaic")
    workflow = next(store.search(client, experiment, kind="workflow")).info.run_id
    pretrain = next(store.search(client, experiment, step_key="activation/pretrain")).info.run_id
    model = client.get_model_version_by_alias("default-activation", "newest")
    runs = f"#/experiments/{experiment}/runs"
    evaluations = f"?searchFilter={quote(f'tags.`moesaic.step` = {chr(39)}evaluate{chr(39)} and {CURRENT}')}"
    order = f"&orderByKey={quote(SCORES[0])}&orderByAsc=true"
    OUT.mkdir(parents=True, exist_ok=True)
    with server() as address:
        last = [f"metrics.`{variant}/distill/bits_per_byte`" for variant in ("activation", "random")]
        shot(address, runs, "runs", ["default (", "matching runs"], 440, [*last, "attributes.`Source`"])
        shot(address, runs + evaluations + order, "evaluations", ["dense / evaluate"], 620, SCORES)
        shot(address, f"#/experiments/{experiment}/runs/{pretrain}", "step", ["train/loss", "tokens"], 900)
        charts = f"#/experiments/{experiment}/runs/{pretrain}/model-metrics"
        shot(address, charts, "charts", ["tokens_per_second"], 760, pause=30, search="train")
        report = f"#/experiments/{experiment}/runs/{workflow}/artifacts/report.html"
        shot(address, report, "report", ["summary.json", "Path:"], 900, pause=15)
        shot(address, f"#/models/{model.name}/versions/{model.version}", "model", ["How it was made"], 700)


def shot(
    address: str,
    page: str,
    name: str,
    words: list[str],
    height: int,
    columns: list[str] | None = None,
    pause: float = 4,
    search: str = "",
) -> None:
    """Open a page of MLflow, wait for the words, and keep what is seen as a small PNG."""
    import browser

    if sys.argv[1:] and name not in sys.argv[1:]:
        return
    kept = dict(PREPARED)
    if columns:
        state = {"selectedColumns": columns, "orderByKey": "attributes.start_time", "orderByAsc": False}
        experiment = page.split("/")[2].split("?")[0]
        kept[f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState'] = json.dumps(
            state
        )
    before = f"for (const [k, v] of Object.entries({json.dumps(kept)})) localStorage.setItem(k, v)"
    ready = " && ".join(f"document.body.innerText.includes({json.dumps(word)})" for word in words)
    sleep = f"new Promise(done => setTimeout(done, {1000 * pause}))"
    raw = OUT / f"{name}.png.raw"
    browser.visit(
        address + page, [TYPE % json.dumps(search), sleep, PATHS], width=WIDTH, height=height, wait_for=f"document.body && {ready}",
        seconds=120, picture=raw, before=before,
    )  # fmt: skip
    picture = Image.open(io.BytesIO(raw.read_bytes())).convert("RGB").quantize(128)
    raw.unlink()
    picture.save(OUT / f"{name}.png", optimize=True)
    print(f"{name}.png: {(OUT / f'{name}.png').stat().st_size / 1000:.0f} kB")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """MLflow's server on a free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = subprocess.DEVNULL
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
