"""The LAMBADA test set: 5,153 passages in a file that is checked by its SHA-256."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pooch

from harness.paths import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE_NAME = "lambada_test.jsonl"
SHA256 = "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"
URL = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
DOWNLOAD_COMMAND = "rwkv-tpu lambada --fetch"

_SHARED = Path(__file__).parents[3] / "shared" / "data" / "lambada" / FILE_NAME


class DataError(ValueError):
    """The data file is absent, altered or cannot be downloaded; says what to do."""


@dataclass(frozen=True, slots=True)
class Document:
    """A passage.

    Attributes:
        id: the first 12 hexadecimal digits of its text's SHA-256; where a text stands in the file twice, the second
            has ``-2`` behind it.
        text: all of it; the last word is to be predicted.
    """

    id: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text, as hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class _Line(msgspec.Struct, frozen=True):
    text: str


def find_data(given: Path | None, cache: Path | None = None, shared: Path = _SHARED) -> Path:
    """Return the data file: the *given* one, else *shared*, beside the repository, else the downloaded one.

    Raises:
        DataError: it does not exist.
    """
    places = [given] if given else [shared, _downloaded(cache or cache_folder())]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"no LAMBADA data: there is no file {', and no '.join(map(str, places))}\n"
        f"Download it with  {DOWNLOAD_COMMAND}  or name a copy with --data FILE"
    )


def fetch(cache: Path, url: str = URL, sha256: str = SHA256) -> Path:
    """Download the data file into the cache folder, whole or not at all; does nothing where it lies there unaltered.

    Raises:
        DataError: it cannot be downloaded, or is not the file that it should be.
    """
    goal = _downloaded(cache)
    pooch.get_logger().setLevel("WARNING")  # it would tell of each step on stderr
    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=goal.name, path=goal.parent)
    except (OSError, ValueError) as error:  # the network's errors are OSErrors, another hash is a ValueError
        raise DataError(
            f"{url}: cannot be downloaded: {error}\n"
            f"Where there is no network, bring the file (SHA-256 {sha256}) and name it with --data FILE"
        ) from error
    return goal


def read(path: Path, sha256: str = SHA256) -> tuple[Document, ...]:
    """Read the data file.

    Raises:
        DataError: it cannot be read, or has another SHA-256.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path}: is not the LAMBADA test set, or was altered: its SHA-256 is {found}, but should be {sha256}\n"
            f"Download it with  {DOWNLOAD_COMMAND}"
        )
    seen: Counter[str] = Counter()
    documents = []
    for line in msgspec.json.Decoder(_Line).decode_lines(content):
        name = Document("", line.text).sha256[:12]
        seen[name] += 1
        documents.append(Document(name if seen[name] == 1 else f"{name}-{seen[name]}", line.text))
    return tuple(documents)


def subset(documents: Sequence[Document], limit: int | None) -> tuple[Document, ...]:
    """Return *limit* documents (None: all), always the same ones, in the file's order.

    They are those whose texts have the smallest SHA-256: as good as drawn by lot, and each subset is part of every
    larger one.
    """
    chosen = sorted(range(len(documents)), key=lambda i: documents[i].sha256)[:limit]
    return tuple(documents[i] for i in sorted(chosen))


def _downloaded(cache: Path) -> Path:
    return cache / "lambada" / FILE_NAME
