"""Original data that their publishers serve as files: fetched at first use, checked by digest, put where a task reads.

A file's address never changes here without its digest, so everybody trains on the same bytes. Archives are unpacked
beside their place and moved into it, the entry that tells that the data are there last: a cut download or unpacking
leaves nothing that could pass for data.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from tasks.sources import DataUnavailable, cache_folder, sha256, shown

_CHUNK_BYTES = 1 << 20
_PATIENCE_S = 60.0  # between two chunks


@dataclass(frozen=True)
class Published:
    """A file on its publisher's host.

    Attributes:
        url: of one fixed version.
        sha256: of the file.
        size: for the person who waits, such as ``2.7 GB``.
        licence: what the publisher says of its use.
        tells: path in the data folder that is there when the data are.
        archive: whether the file is a tar or ZIP archive with one folder, whose entries make up the data folder; else
            it is put at ``tells`` itself.
    """

    url: str
    sha256: str
    size: str
    licence: str
    tells: str
    archive: bool

    def into(self, folder: Path) -> None:
        """Puts the data into ``folder`` unless they are there, or the folder is the user's own and not of the cache.

        Raises:
            DataUnavailable: the host cannot be reached, or sends another file.
        """
        if (folder / self.tells).exists() or not folder.is_relative_to(cache_folder()):
            return
        print(f"cab: fetching {self.url} ({self.size}; {self.licence}) into {folder}", file=sys.stderr, flush=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
                fetched = self._fetched(Path(scratch))
                if self.archive:
                    self._unpack(fetched, Path(scratch) / "unpacked", folder)
                else:
                    (folder / self.tells).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(fetched, folder / self.tells)
        except (OSError, ValueError, tarfile.TarError, zipfile.BadZipFile, requests.RequestException) as error:
            lost = isinstance(error, requests.ConnectionError | requests.Timeout)
            reason = "no connection" if lost else " ".join(str(error).split())
            raise DataUnavailable(
                f"cannot fetch {self.url} ({reason}); put {self.tells} and what belongs to it"
                f" into {shown(folder)} (another folder: task.data_root=FOLDER)"
            ) from error

    def _fetched(self, scratch: Path) -> Path:
        path = scratch / "fetched"
        with requests.get(self.url, stream=True, timeout=_PATIENCE_S) as response, path.open("wb") as file:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:  # None: only at a terminal
                for chunk in response.iter_content(_CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
        found = sha256(path)
        if found != self.sha256:
            raise ValueError(f"the host sent a file with sha256 {found}, expected {self.sha256}")
        return path

    def _unpack(self, archive: Path, scratch: Path, folder: Path) -> None:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(scratch)
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(scratch, filter="data")
        tops = list(scratch.iterdir())
        if len(tops) != 1 or not (tops[0] / self.tells).exists():
            raise ValueError(f"the archive holds {', '.join(sorted(top.name for top in tops))}, not {self.tells}")
        for entry in sorted(tops[0].iterdir(), key=lambda entry: entry.name == Path(self.tells).parts[0]):
            if not (folder / entry.name).exists():
                shutil.move(entry, folder / entry.name)


_ETT_COMMIT = "1d16c8f4f943005d613b5bc962e9eeb06058cf07"


def _ett(name: str, size: str, sha256: str) -> Published:
    return Published(
        url=f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/{_ETT_COMMIT}/ETT-small/{name}.csv",
        sha256=sha256,
        size=size,
        licence="CC BY-ND 4.0",
        tells=f"ETT-small/{name}.csv",
        archive=False,
    )


ETT = {
    "ETTh1": _ett("ETTh1", "2.6 MB", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    "ETTh2": _ett("ETTh2", "2.4 MB", "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    "ETTm1": _ett("ETTm1", "10 MB", "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
}
LJSPEECH = Published(
    url="https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
    sha256="be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
    size="2.7 GB",
    licence="public domain",
    tells="metadata.csv",
    archive=True,
)
MULTI_NEWS = Published(
    url="https://drive.usercontent.google.com/download?id=1vRY2wM6rlOZrf9exGTm5pXj5ExlVwJ0C&export=download&confirm=t",
    sha256="64ae4d2483b248c9664b50bacfab6821f8a3e93f382c7587686fa4a127f77626",
    size="257 MB",
    licence="for research only",
    tells="train.src",
    archive=True,
)
