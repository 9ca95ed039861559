"""The images step: folders and packages of pictures, captions and whole records, filters, what goes wrong; the chat step behind it."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pictured
import pytest
from PIL import Image
from test_images import turns

from moesaic.data.images import codebook, pictures, records, step, vocabulary
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.step import Context
from moesaic.schema import Images


def run(folder, **settings):
    """Run the step; returns its result and the conversations."""
    whole = Images.model_validate(pictured.IMAGES | settings).model_dump(mode="json")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    result = step.run(Context({"images": whole, "seed": 3}, {}, out, out / "work", "prepare/images"))
    return result, files.read_lines(out / records.NAME)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictured.draw(tmp_path / "pictures")
    return tmp_path


def test_captioned_pictures_are_drawn_and_described_each_once(folder):
    result, found = run(folder)
    assert result.metrics["conversations"] == 24
    assert result.metrics["images"] == 48
    assert 15 < result.metrics["psnr_db"] < 60
    captions = []
    for number, conversation in enumerate(found):
        told = [message["content"] for message in conversation["messages"]]
        assert [message["role"] for message in conversation["messages"]] == ["user", "assistant"] * 2
        drawing = 0 if number % 2 == 0 else 2
        describing = 2 - drawing
        caption = told[drawing].removeprefix("Draw ").removesuffix(".")
        assert vocabulary.PICTURE.fullmatch(told[drawing + 1])
        assert told[describing].endswith("<|image end|>What does this picture show?")
        captions += [caption, told[describing + 1]]
        # the pictures lie in the order in which they stand in the conversation
        shown = pictures.load(folder / "out", number)
        assert len(shown) == 2
        for place, name in ((drawing // 2, caption), (describing // 2, told[describing + 1])):
            path = folder / "pictures" / (name.replace(" on ", " ").replace(" ", "-") + ".png")
            assert np.array_equal(shown[place], np.asarray(Image.open(path)))
    assert len(set(captions)) == 48, "every picture in one direction only"
    book = codebook.load(folder / "out")
    codes = vocabulary.parse(found[0]["messages"][1]["content"])[0]
    assert np.array_equal(codes, book.encode(pictures.load(folder / "out", 0)[0] / 255))
    first = {path.name: files.sha256(path) for path in (folder / "out").iterdir() if path.is_file()}
    run(folder)
    assert first == {path.name: files.sha256(path) for path in (folder / "out").iterdir() if path.is_file()}


def test_a_part_of_the_captions_is_taken_at_random(folder):
    source = {"at": {"kind": "files", "path": "pictures/metadata.jsonl"}, "max_records": 12}
    result, found = run(folder, sources=[source], turns=3)
    assert (result.metrics["conversations"], result.metrics["images"]) == (4, 12)
    text = json.dumps(found)
    assert sum(colour in text for colour in pictured.COLOURS) >= 3


@pytest.mark.parametrize("turns", [1, 2])
def test_a_picture_with_several_captions_stands_in_one_record(folder, turns, caplog):
    """Several rows of one file, as in COCO, and one folder in two sources: one side of the split and one direction for each picture."""
    table = folder / "pictures" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text(
        "".join(json.dumps(row | {"text": f"{row['text']} {i}"}) + "\n" for row in rows for i in range(3))
    )
    some = {"at": {"kind": "files", "path": "pictures"}, "max_records": 20}
    result, found = run(folder, sources=[some, {"at": {"kind": "files", "path": "pictures"}}], turns=turns)
    assert result.metrics["images"] == 48
    counts = json.loads((folder / "out/stats.json").read_text())["records"]
    assert counts == {"kept": 48 // turns, "repeated_picture": 2 * 96 + 20}
    assert "212 captions are left out" in caplog.text
    shown = np.concatenate([pictures.load(folder / "out", number) for number in range(len(found))])
    assert len(np.unique(shown.reshape(48, -1), axis=0)) == 48
    told = json.dumps(found)
    assert all(f"{row['text']} 0" in told and f"{row['text']} 1" not in told for row in rows)


def test_whole_records_that_share_a_picture_are_told(folder, caplog):
    picture = {"type": "image", "image": "red-left-light.png"}
    lines = [turns([picture, {"type": "text", "text": f"What {i}?"}], "red") for i in range(2)]
    lines.append(
        turns([{"type": "image", "image": "blue-far-dark.png"}, {"type": "text", "text": "What?"}], "blue")
    )
    path = folder / "pictures" / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, found = run(
        folder, sources=[{"at": {"kind": "files", "path": str(path)}, "format": "messages"}], codes=4
    )
    assert len(found) == 3
    assert "1 pictures stand in several records" in caplog.text


def test_whole_records_and_filters(folder):
    def picture(name):
        return {"type": "image", "image": f"{name}.png"}

    said = {"type": "text", "text": "Here it is:"}
    lines = [
        turns("Draw two.", [said, picture("red-left-light"), picture("blue-far-dark")]),
        turns([picture("green-low-grey"), {"type": "text", "text": "What?"}], "green"),
        turns("Draw it twice.", [picture("red-left-light"), picture("red-left-light")]),
        turns("No picture?", "no"),
        {"text": "no record"},
    ]
    path = folder / "pictures" / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"at": {"kind": "files", "path": str(path)}, "format": "messages"}
    result, found = run(folder, sources=[source], codes=4)
    assert json.loads((folder / "out/stats.json").read_text())["records"] == {
        "images_equal": 1,
        "images_few": 1,
        "kept": 2,
        "malformed": 1,
    }
    assert len(vocabulary.parse(found[0]["messages"][1]["content"])) == 2
    assert found[0]["messages"][1]["content"].startswith("Here it is:<|image 4x4|>")
    assert result.metrics["images"] == 3
    result, found = run(folder, sources=[source | {"max_records": 1}], codes=4)
    assert len(found) == 1


def package(folder, monkeypatch):
    """A source in a package of two pictures whose archive lies in the cache."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("red-left-light", "blue-far-dark"):
            archive.add(folder / "pictures" / f"{name}.png", f"package/img/{name}.png")
        rows = json.dumps(
            [{"image": "red-left-light.png", "name": "RED"}, {"image": "blue-far-dark.png", "name": "BLUE"}]
        )
        info = tarfile.TarInfo("package/all.json")
        info.size = len(rows)
        archive.addfile(info, io.BytesIO(rows.encode()))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    monkeypatch.setenv("MOESAIC_CACHE", str(folder / "cache"))
    at = folder / "cache/packages" / digest
    at.mkdir(parents=True)
    (at / "p.tgz").write_bytes(buffer.getvalue())
    common = {"kind": "npm", "package": "p", "version": "1.0.0", "sha256": digest}
    return {
        "at": common | {"file": "package/all.json"},
        "images": common | {"file": "package/img/*.png"},
        "image": "package/img/{image}",
        "caption": "{name}",
    }


def test_pictures_of_a_package(folder, monkeypatch):
    source = package(folder, monkeypatch)
    _, found = run(folder, sources=[source], codes=4)
    text = json.dumps(found)
    assert "red" in text
    assert "blue" in text
    assert "RED" not in text, "capitals throughout are made small"
    with pytest.raises(InputError, match=r"sources\.0\.image: no file red-left-light\.png among the 2"):
        run(folder, sources=[source | {"image": "{image}"}], codes=4)
    with pytest.raises(InputError, match=r"no record has what .* ask for; its fields are image, name"):
        run(folder, sources=[source | {"caption": "{title}"}], codes=4)


def test_what_is_wrong_is_named(folder):
    (folder / "pictures/red-left-light.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"red-left-light\.png: not an image"):
        run(folder)
    (folder / "bare").mkdir()
    (folder / "bare/a.txt").write_text("x")
    with pytest.raises(InputError, match=r"sources\.0\.at: no table of records there"):
        run(folder, sources=[{"at": {"kind": "files", "path": "bare"}}])
    (folder / "bare/metadata.csv").write_text("file_name,text\na.txt,x\n")
    with pytest.raises(InputError, match=r"a\.txt: not an image"):
        run(folder, sources=[{"at": {"kind": "files", "path": "bare"}}])
    (folder / "out" / pictures.NAME).write_bytes(b"no")
    with pytest.raises(InputError, match="missing or damaged pictures"):
        pictures.load(folder / "out", 0)


def test_nothing_left_says_why(folder):
    with pytest.raises(InputError, match=r"no picture is left \(\{'text_short': 24\}\)"):
        run(folder, filters={"min_characters": 200})


def test_conversations_that_are_too_long_stop_the_chat_step(folder, monkeypatch):
    import project

    path = pictured.make(folder / "p", {"data": {"chat": {"max_tokens": 40}}})
    monkeypatch.chdir(path.parent)
    for name in ("dense", "images"):
        project.run(path, name)
    with pytest.raises(InputError, match=r"no conversation with pictures .* raise data\.chat\.max_tokens"):
        project.run(path, "chat")
