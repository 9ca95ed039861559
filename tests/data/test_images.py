"""Images as tokens: codebook on real photographs, vocabulary, interleaved records, filter chain, judge."""

import http.server
import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from project import tokenizer_of_library
from sklearn.datasets import load_sample_image
from tiny import tiny_llama, tiny_moe

from moesaic.data.chat import encode as encode_chat
from moesaic.data.images import codebook, filters, judge, records, vocabulary
from moesaic.errors import InputError


@pytest.fixture(scope="module")
def photographs():
    """Crops of the two photographs that scikit-learn ships, as pixels."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        whole = load_sample_image(name) / 255
        found += [whole[y : y + 160, x : x + 160][::5, ::5] for y in (0, 200) for x in (0, 200, 400)]
    return found


def test_codebook_on_photographs(photographs, tmp_path):
    book = codebook.train(photographs, codes=64, patch=4, seed=0)
    assert book.centres.shape == (64, 48)
    codes = book.encode(photographs[0])
    assert codes.shape == (8, 8)
    assert codes.max() < 64
    better = np.mean([codebook.psnr(x, book.decode(book.encode(x))) for x in photographs])
    grey = np.mean([codebook.psnr(x, np.broadcast_to(x.mean(axis=(0, 1)), x.shape)) for x in photographs])
    coarse = codebook.train(photographs, codes=8, patch=4, seed=0)
    worse = np.mean([codebook.psnr(x, coarse.decode(coarse.encode(x))) for x in photographs])
    assert better > worse > grey
    assert np.array_equal(book.encode(book.decode(codes)), codes)  # a decoded picture has the same codes
    assert np.array_equal(codebook.train(photographs, 64, 4, 0).centres, book.centres)
    book.save(tmp_path)
    assert np.array_equal(codebook.load(tmp_path).centres, book.centres)
    (tmp_path / codebook.NAME).write_bytes(b"no")
    with pytest.raises(InputError, match="damaged codebook"):
        codebook.load(tmp_path)


def test_codebook_errors(photographs, tmp_path):
    with pytest.raises(InputError, match="only 1 different patches"):
        codebook.train([np.zeros((32, 32, 3))], 8, 4, 0)
    with pytest.raises(InputError, match="do not divide into patches of 5"):
        codebook.train(photographs, 8, 5, 0)
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(InputError, match="not an image"):
        codebook.read(tmp_path / "a.png", (8, 8), 4)


def test_a_picture_is_turned_upright(tmp_path):
    """EXIF orientation 6, as cameras held upright write it: the first row of the file is the right side."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    found = codebook.read(tmp_path / "a.png", (2, 2), 4)
    assert np.array_equal(found[:, 4:], np.ones((8, 4, 3)))
    assert np.array_equal(found[:, :4], np.zeros((8, 4, 3)))


def test_each_pixel_keeps_its_place():
    pixels = np.random.default_rng(0).random((6, 9, 3))
    book = codebook.Codebook(codebook.patches(pixels, 3).reshape(6, 27), 3)
    assert np.array_equal(book.encode(pixels), np.arange(6).reshape(2, 3))
    assert np.allclose(book.decode(np.arange(6).reshape(2, 3)), pixels)


def test_pictures_as_text_and_back():
    codes = np.array([[3, 1, 4], [1, 5, 9]])
    text = vocabulary.write(codes)
    assert text == "<|image 2x3|><|code 3|><|code 1|><|code 4|><|code 1|><|code 5|><|code 9|><|image end|>"
    found = vocabulary.parse(f"one {text} two <|image 2x2|><|code 7|><|code 8|> broken off")
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], [[7, 8], [0, 0]])


@pytest.mark.parametrize("kind", ["dense", "untied", "moe"])
def test_vocabulary_of_any_model(kind, tmp_path):
    """New rows for image tokens; text ids, text rows and hidden states of text are as before, to the last digit."""
    model = tiny_moe(tmp_path).model if kind == "moe" else tiny_llama(tie_word_embeddings=kind == "dense")
    tokenizer = tokenizer_of_library()
    sentence = "def run(self): return 2 < 3"
    before = tokenizer(sentence)["input_ids"]
    ids = torch.tensor([before])
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state
        logits = model(input_ids=ids).logits
    tokens = vocabulary.extend(model, tokenizer, 16, [(2, 3), (4, 4)])
    assert model.config.vocab_size == 512 + 16 + 1 + 2 == len(tokenizer)
    assert tokenizer(sentence)["input_ids"] == before
    with torch.no_grad():
        assert torch.equal(model.base_model(input_ids=ids).last_hidden_state, hidden)
        assert torch.allclose(model(input_ids=ids).logits[..., :512], logits, atol=1e-5)
    assert vocabulary.of(tokenizer) == tokens
    codes = np.array([[3, 1, 4], [1, 5, 9]])
    found = tokenizer(f"a{vocabulary.write(codes)}b")["input_ids"]
    begin = found.index(next(i for i, grid in tokens.grids.items() if grid == (2, 3)))
    assert found[begin + 1 : begin + 7] == [tokens.first + c for c in codes.flatten()]
    assert found[begin + 7] == tokens.end
    assert vocabulary.parse(tokenizer.decode(found, skip_special_tokens=True))[0].tolist() == codes.tolist()
    tokenizer.save_pretrained(tmp_path / "t")
    again = type(tokenizer).from_pretrained(tmp_path / "t")
    assert vocabulary.of(again) == tokens
    rows = model.get_input_embeddings().weight[512:]
    assert len(torch.unique(rows, dim=0)) == len(rows)
    with pytest.raises(InputError, match="already"):
        vocabulary.extend(model, tokenizer, 4, [(2, 2)])


def save(path, pixels):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)


def turns(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


def test_interleaved_records_as_conversations(photographs, tmp_path):
    """Text, image, text, image: in the chat step's own encoding the loss falls on the answer, pictures included."""
    save(tmp_path / "img" / "a.png", photographs[0])
    save(tmp_path / "img" / "b.png", photographs[1])
    book = codebook.train(photographs, 32, 4, 0)
    question = [{"type": "text", "text": "What is this?"}, {"type": "image", "image": "img/a.png"}]
    answer = [
        {"type": "text", "text": "A roof. Another: "},
        {"type": "image", "image": "img/b.png"},
        {"type": "text", "text": "!"},
    ]
    record = records.parse(turns(question, answer), tmp_path.joinpath, (8, 8), 4)
    assert [len(turn.parts) for turn in record] == [2, 3]
    assert records.words(record) == "What is this?\nA roof. Another:  !"
    found = records.encode(record, book)
    assert found[0]["content"].startswith("What is this?<|image 8x8|><|code ")
    assert np.array_equal(
        vocabulary.parse(found[1]["content"])[0], book.encode(records.pictures(record)[1].pixels)
    )
    tokenizer = tokenizer_of_library()
    tokens = vocabulary.extend(tiny_llama(), tokenizer, 32, [(8, 8)])
    ids, mask = (torch.tensor(part) for part in encode_chat(found, tokenizer))
    is_code = tokens.is_code(ids)
    assert int(is_code.sum()) == 128
    assert int((is_code & (mask == 1)).sum()) == 64


def test_malformed_records_are_none(tmp_path):
    for bad in (
        {"text": "x"},
        turns("a", [{"type": "video", "video": "x"}]),
        turns("a", [{"type": "text"}]),
        turns("a<|code 3|>", "b"),
        {"messages": [{"role": "assistant", "content": "b"}]},
    ):
        assert records.parse(bad, tmp_path.joinpath, (2, 2), 4) is None
    with pytest.raises(InputError, match="not an image"):
        records.parse(turns([{"type": "image", "image": "gone.png"}], "b"), tmp_path.joinpath, (2, 2), 4)


def made(text, *images):
    parts = [records.Picture(None, pixels) for pixels in images]
    return (records.Turn("user", (text, *parts)), records.Turn("assistant", ("yes",)))


def test_filter_chain_counts_every_drop(photographs):
    a, b = photographs[0], photographs[7]
    near = np.clip(a + 0.001, 0, 1)
    scored = {"good": 5.0, "bad": 1.0}
    asked = []

    def score(aspect, record):
        asked.append(record[0].parts[0])
        return scored[record[0].parts[0].split()[0]]

    limits = filters.Limits(
        min_characters=8, max_characters=60, max_images=2, min_scores={"text quality": 3.0}
    )
    given = [
        made("good text here", a), made("no", a), made("x" * 80, a), made("good, no picture"), made("good text", a, b, a),
        made("good text twice", a, near), made("bad text here", a, b),
    ]  # fmt: skip
    counts = Counter()
    kept = list(filters.chain(given, limits, counts, score))
    assert kept == [given[0]]
    assert counts == {
        "kept": 1, "text_short": 1, "text_long": 1, "images_few": 1, "images_many": 1, "images_equal": 1, "judge_text_quality": 1,
    }  # fmt: skip
    assert asked == ["good text here", "bad text here"]  # the dear filter sees only what the cheap ones leave

    def refusing(aspect, record):
        if "bad" in record[0].parts[0]:
            raise judge.Unreadable("judge: small answered 'I cannot rate this'")
        return 5.0

    counts = Counter()
    assert list(filters.chain([given[0], given[6]], limits, counts, refusing)) == [given[0]]
    assert counts == {"kept": 1, "judge_unreadable": 1}, "one answer without a score costs one record"
    assert filters.similarity(a, near) > 0.999 > filters.similarity(a, b)
    strict = filters.Limits(min_characters=1, min_similarity=0.9)
    assert filters.reason(made("two", a, b), strict) == "images_incoherent"


def test_judge_at_an_endpoint(photographs, monkeypatch):
    """A local server in the form of the OpenAI interface, which is busy for a while."""
    monkeypatch.setattr(judge, "WAITS", (0.0, 0.0))
    seen, answers, busy = [], iter(["4", "Score: 3", "fine", "9"]), iter([503, 429])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, self.headers["Authorization"], json.loads(self.rfile.read(int(self.headers["Content-Length"])))))  # fmt: skip
            if (code := next(busy, None)) is not None or self.path != "/v1/chat/completions":
                self.send_error(code or 404)
                return
            body = json.dumps({"choices": [{"message": {"content": next(answers)}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask = judge.endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "small", "secret")
        record = made("a roof", photographs[0])
        assert ask("text quality", record) == 4.0
        assert ask("text-image agreement", record) == 3.0
        for _ in range(2):
            with pytest.raises(judge.Unreadable, match="where a number from 0 to 5 was asked for"):
                ask("helpfulness", record)
        with pytest.raises(InputError, match="no aspect"):
            ask("beauty", record)
        assert len(seen) == 2 + 4
        with pytest.raises(InputError, match=r"gave no usable answer \(HTTP Error 404"):
            judge.endpoint(f"http://127.0.0.1:{server.server_port}/elsewhere", "small")("helpfulness", record)
        assert len(seen) == 2 + 4 + 1, "a wrong address is not asked again"
        server.shutdown()
    path, authorization, body = seen[0]
    assert (path, authorization, body["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    images = [p for p in body["messages"][0]["content"] if p["type"] == "image_url"]
    assert len(images) == 1
    assert images[0]["image_url"]["url"].startswith("data:image/png;base64,")
    with pytest.raises(InputError, match="gave no usable answer"):
        judge.endpoint("http://127.0.0.1:9/v1", "small")("helpfulness", record)
