"""Pictures drawn with the cache equal the full pass; what is asked of a model stands where it should; the judge; text alone."""

import http.server
import json
import threading

import numpy as np
import pictured
import project
import pytest
import torch
from tiny import tiny_llama

from moesaic.data.images import vocabulary
from moesaic.evaluate.images import drawing, losses, suite
from moesaic.evaluate.prefix import SharedPrefixLM
from moesaic.flow import manifest
from moesaic.model.adapters import attach
from moesaic.model.adapters.layout import ImageTokens
from moesaic.model.adapters.options import Options
from moesaic.model.load import load_model, load_tokenizer
from moesaic.train.streams import ChatStream

TOKENS = ImageTokens(400, 64, 470, {471: (2, 3)})


def adapted():
    """A tiny model whose adapter does something."""
    model = tiny_llama()
    attach.attach(model, Options(rank=4, kernel="plain"), TOKENS)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in attach.adapted(model):
            for parameter in layer.update_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_drawing_with_the_cache_equals_one_pass_per_code():
    model = adapted()
    prompts = [[5, 6, 7, 471], [9, 471], [5, 471, *range(400, 406), 470, 8, 471]]
    found = drawing.draw(model, TOKENS, prompts, (2, 3), 2, None)
    for prompt, codes in zip(prompts, found, strict=True):
        ids = list(prompt)
        for code in codes.flatten():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, 400:464]
            assert int(logits.argmax()) == code
            ids.append(400 + int(code))
    one, two = (
        drawing.draw(model, TOKENS, prompts, (2, 3), 2, torch.Generator().manual_seed(seed))
        for seed in (0, 0)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, drawing.draw(model, TOKENS, prompts, (2, 3), 2, torch.Generator().manual_seed(1)))  # fmt: skip
    assert not np.array_equal(one, found)


def test_text_only_is_the_head_without_image_tokens():
    model, tokenizer = tiny_llama(), project.tokenizer_of_library()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        tokens = vocabulary.extend(model, tokenizer, 16, [(2, 2)])
        whole = model(input_ids=ids).logits
        assert whole.shape[-1] == 512 + 18
        with vocabulary.text_only(model, tokens):
            assert torch.equal(model(input_ids=ids).logits, before)
        assert torch.equal(model(input_ids=ids).logits, whole)
        model.tie_weights()  # as lm-eval's constructor does
        with vocabulary.text_only(model, tokens):
            SharedPrefixLM(model, tokenizer, 2)
            assert torch.equal(model(input_ids=ids).logits, before), "the harness leaves the head as it was"
        assert torch.equal(model(input_ids=ids).logits, whole)
        with vocabulary.text_only(model, None):
            assert torch.equal(model(input_ids=ids).logits, whole)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The tiny project up to the chat step."""
    folder = tmp_path_factory.mktemp("suite")
    path = pictured.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("dense", "images", "chat"):
            project.run(path, name)
    return folder / "results"


def test_what_is_asked_stands_where_it_should(run):
    tokenizer = load_tokenizer(run / "dense/model")
    tokens = vocabulary.of(tokenizer)
    images, held = run / "prepare/images", ChatStream(manifest.read(run / "prepare/chat"), "validation")
    draw, describe = suite.asked(held, tokens, images, 2)
    assert len(draw) == len(describe) == 2
    lines = [json.loads(line) for line in (images / "conversations.jsonl").read_text().splitlines()]
    for item in draw:
        told = lines[item.record]["messages"]
        answer = next(t["content"] for t in told if t["role"] == "assistant" and "<|image" in t["content"])
        assert np.array_equal(vocabulary.parse(answer)[0], item.codes)
        assert item.prompt[-1] in tokens.grids
        assert tokenizer.decode(item.prompt).endswith(item.words + "<|im_end|>\n<|im_start|>assistant\n<|image 4x4|>")  # fmt: skip
    for item in describe:
        told = lines[item.record]["messages"]
        assert item.words in [t["content"] for t in told]
        assert tokenizer.decode(item.prompt).endswith("show?<|im_end|>\n<|im_start|>assistant\n")


def test_losses_by_modality_add_up_to_the_whole(run):
    tokenizer, model = load_tokenizer(run / "dense/model"), load_model(run / "dense/model")
    tokens, chats = vocabulary.of(tokenizer), manifest.read(run / "prepare/chat")
    held = ChatStream(chats, "validation")
    count = held.sizes["images"]
    found = losses.measure(model, tokens, held, count, 2, "t")
    ids, mask = held.sets["images"][0]
    ids = torch.tensor(ids.astype(np.int64))[None]
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    nats = -logp.gather(1, ids[0, 1:, None])[:, 0]
    answer = torch.tensor(mask[1:] == 1)
    is_code = tokens.is_code(ids[0, 1:]) & answer
    assert found.image_tokens_N[0] == int(is_code.sum()) == 16
    assert found.image_nats_N[0] == pytest.approx(float(nats[is_code].sum()), rel=1e-4)
    words = answer & ~is_code & ~tokens.is_marker(ids[0, 1:])
    assert found.text_nats_N[0] == pytest.approx(float(nats[words].sum()), rel=1e-4)
    assert found.text_tokens_N[0] == int(words.sum())


def test_a_judge_scores_what_is_drawn(run):
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(
                {
                    "choices": [
                        {"message": {"content": "I cannot tell" if len(seen) == 8 else str(len(seen) % 4)}}
                    ]
                }
            ).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        endpoint = {"url": url, "model": "small", "key_variable": "NO_SUCH_KEY"}
        settings = {"conversations": 2, "batch": 2, "bootstrap": 100, "pictures": 2, "judge": endpoint}
        model, tokenizer = load_model(run / "dense/model"), load_tokenizer(run / "dense/model")
        images, chats = manifest.read(run / "prepare/images"), manifest.read(run / "prepare/chat")
        scores, facts = suite.run(model, tokenizer, settings, images, chats, 3, "t")
        server.shutdown()
    assert len(seen) == 8, "two pictures, four aspects each"
    assert "image_url" in json.dumps(seen[0])
    named = {metric: estimate for metric, estimate, _ in scores}
    assert set(named) == {
        "image_nats", "grid_accuracy", "text_nats", "judge: text quality", "judge: image coherence", "judge: text-image agreement", "judge: helpfulness",
    }  # fmt: skip
    assert named["judge: text quality"].value == 1.0
    assert named["judge: helpfulness"].value == 0.0
    assert named["judge: helpfulness"].n == 1
    assert facts["unjudged"] == 1
    assert len(facts["drawn"]) == 2
