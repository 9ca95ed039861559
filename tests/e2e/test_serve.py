"""A constructed model behind transformers' OpenAI-compatible server: it answers as it does in this process, by its chat template."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import project
import pytest
from ports import free_port

from moesaic.model import load

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = project.make(tmp_path_factory.mktemp("serve"), {"stages": ["construct"]})
    project.prepare(path)
    return path.parent / "results/activation/construct/model"


@pytest.fixture
def server(model, tmp_path):
    """The client of a running server."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    finally:
        process.terminate()
        process.wait(60)


def test_answers_by_the_chat_template(model, server):
    given = server.chat.completions.create(model=str(model), messages=MESSAGES, max_tokens=12, temperature=0)
    local, tokenizer = load.load_model(model), load.load_tokenizer(model)
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    out = local.generate(ids, max_new_tokens=12, do_sample=False)
    assert given.usage.prompt_tokens == ids.shape[1]
    assert given.choices[0].message.content == tokenizer.decode(
        out[0, ids.shape[1] :], skip_special_tokens=True
    )
