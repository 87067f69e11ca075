"""``cab submit``: the records of one machine as one file that others can check, and such a file put beside their own.

A pack is a ZIP archive of records, values per test example, manifests, certificates and task cards of one folder
``<results>/<protocol>/<hardware>``, with ``submission.json``: who, and the SHA-256 of every member. The same folder
gives the same bytes. Unpacked it stands in a folder of its own, ``<protocol>/<hardware>-by-<name>``, never among own
records, and its page says that nobody here has run it again. ``verify`` compares it with own records of the protocol.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cab import schema
from cab.errors import UserError
from cab.protocol import existing
from cab.report.certificates import verdict
from cab.report.compare import Side, compare, pairs_of
from cab.report.evidence import Evidence, is_ok, read_evidence
from cab.report.trust import CONTENT, VERIFICATION, Trust, trust
from tasks.whole_file import whole_file, write_whole

FORMAT = 1
PACKED = (
    "records/*.jsonl",
    "units/*.npz",
    "manifests/*.json",
    "certificates/*.json",
    "cards/*.json",
    "searches/*.json",
    "plan.json",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: the time of packing says nothing of the records
_MOST_BYTES = 4 << 30  # of a pack's members: no honest board comes near, a ZIP bomb does
SMALLEST_PAIRS, MOST_CHANGED = 10, 0.05  # of a verification


def complaints(evidence: Evidence) -> list[str]:
    """What keeps records from being submitted: lines that cannot be read, values without a manifest or certificate."""
    found = list(evidence.problems)
    rows = [row for row in evidence.rows if is_ok(row) and not str(row.get("setting")).startswith("floor:")]
    without = {str(row.get("manifest")) for row in rows} - set(evidence.manifests)
    found += [f"no manifests/{name}.json, which records name" for name in sorted(without)]
    for setting, pattern in sorted({(str(row.get("setting")), str(row.get("pattern"))) for row in rows}):
        about = verdict(evidence.certificates, setting, pattern)
        if not about.admitted:
            found.append(f"{setting} has values in {pattern} without a certificate: {about.reason}")
    for key in sorted({str(row["run_key"]) for row in rows if row.get("phase") == "evaluate"}):
        if not (evidence.folder / "units" / f"{key}.npz").is_file():
            found.append(f"no units/{key}.npz: without values per test example a score has no interval")
    return found


def pack(folder: Path, name: str, out: Path) -> Path:
    """Writes the pack.

    Raises:
        UserError: the records cannot be submitted; every complaint, in one line.
    """
    if not re.fullmatch(r"[\w .,'@+-]{1,80}", name):
        raise UserError(f"name={name!r} is not allowed: who submits, in 1 to 80 letters, digits and . , ' @ + -")
    evidence = read_evidence(folder)
    if found := complaints(evidence):
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UserError(f"{folder} cannot be submitted: {'; '.join(found[:3])}{more}")
    files = {str(path.relative_to(folder)): path for pattern in PACKED for path in sorted(folder.glob(pattern))}
    first = evidence.rows[0]
    content = {
        "format": FORMAT,
        "name": name,
        "protocol": first.get("protocol"),
        "hardware": first.get("hardware"),
        "records": len(evidence.rows),
        "files": {member: hashlib.sha256(path.read_bytes()).hexdigest() for member, path in files.items()},
    }
    with whole_file(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, CONTENT, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        for member, path in files.items():
            _add(archive, member, path.read_bytes())
    return out


def _add(archive: zipfile.ZipFile, member: str, content: bytes) -> None:
    info = zipfile.ZipInfo(member, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, content)


def unpack(path: Path, results: Path) -> Path:
    """Puts a pack into ``<results>/<protocol>/<hardware>-by-<name>`` once every digest is checked; returns the folder.

    Raises:
        UserError: not a pack, damaged, with members that a pack has not, or its folder is there with other content.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _described(archive)
            members = {member: archive.read(member) for member in content["files"]}
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"unpack={path}: not a pack of `cab submit` ({' '.join(str(error).split())})") from error
    slug = re.sub(r"[^a-z0-9]+", "-", str(content["name"]).lower()).strip("-") or "unknown"
    folder = results / str(content["protocol"]) / f"{content['hardware']}-by-{slug}"
    _require_sound(path, members)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if folder.exists() and not ((folder / CONTENT).is_file() and (folder / CONTENT).read_text() == text):
        raise UserError(f"{folder} is there, with other content: nothing that was submitted is overwritten")
    for member, data in members.items():
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    write_whole(folder / CONTENT, text.encode())  # last: a folder with it is whole
    return folder


def _require_sound(path: Path, members: Mapping[str, bytes]) -> None:
    """Holds the members of a pack to what :func:`pack` holds a folder to."""
    with tempfile.TemporaryDirectory() as scratch:
        for member, data in members.items():
            target = Path(scratch) / member
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        try:
            found = complaints(read_evidence(Path(scratch)))
        except ValueError as error:
            found = [str(error).replace(scratch, "its folder")]
    if found:
        raise UserError(f"unpack={path}: {'; '.join(found[:3])}{f' (and {len(found) - 3} more)' * (len(found) > 3)}")


def _described(archive: zipfile.ZipFile) -> dict[str, Any]:
    """``submission.json``, with every member checked against it."""
    if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
        raise ValueError(f"its members have over {_MOST_BYTES:,} bytes")
    content = json.loads(archive.read(CONTENT))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{CONTENT} is not of format {FORMAT}")
    for key in ("name", "protocol", "hardware"):
        if not re.fullmatch(r"[\w .,'@+-]{1,120}", str(content.get(key))):
            raise ValueError(f"{CONTENT}: {key}={content.get(key)!r}")
    files = content["files"]
    if {info.filename for info in archive.infolist()} != {CONTENT, *files}:
        raise ValueError(f"its members are not those of {CONTENT}")
    for member, digest in files.items():
        if not any(PurePosixPath(member).match(pattern) for pattern in PACKED) or ".." in PurePosixPath(member).parts:
            raise ValueError(f"{member!r} does not belong into a pack")
        if hashlib.sha256(archive.read(member)).hexdigest() != digest:
            raise ValueError(f"{member} is damaged: its SHA-256 is another")
    return content


def verify(folder: Path, against: Path, baseline: str) -> Trust:
    """Compares with own records and keeps the verdict beside the submitted ones.

    Verified is what has ten pairs of values with an interval, of which at most one in twenty differs (as many as
    intervals of 95 % let differ by chance, and more than they do), none by more than the intervals are wide together,
    and no value that has no counterpart or no interval: nothing that is shown was left out of the comparison.

    Raises:
        UserError: the folder is no submission, or the other one is.
    """
    if trust(folder).level == "own":
        raise UserError(f"verify={folder} is no submission: it has no {CONTENT}")
    if trust(against).level != "own":
        raise UserError(f"against={against} was submitted, too: verify with records of your own")
    sides = [Side.of(read_evidence(each), baseline) for each in (folder, against)]
    found = [pair for pair in pairs_of(compare(*sides)) if pair.first is not None]
    pairs = [pair for pair in found if pair.whole]
    changed, far = sum(pair.changed for pair in pairs), sum(pair.far for pair in pairs)
    unproved = len(found) - len(pairs)
    content = {
        "against": f"{against.parent.name}/{against.name}",
        "pairs": len(pairs),
        "changed": changed,
        "far": far,
        "unproved": unproved,
        "verified": len(pairs) >= SMALLEST_PAIRS and changed <= MOST_CHANGED * len(pairs) and not far and not unproved,
    }
    write_whole(folder / VERIFICATION, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return trust(folder)


def submit(config: schema.Submit, baseline: str) -> None:
    """The verb: packs ``folder``, unpacks ``unpack``, or verifies ``verify``."""
    wanted = [key for key in ("folder", "unpack", "verify") if getattr(config, key) is not None]
    if len(wanted) != 1:
        raise UserError("give one of folder=DIR (to pack), unpack=FILE and verify=DIR; see `cab submit --help`")
    if config.unpack is not None:
        print(unpack(Path(config.unpack).expanduser(), Path(config.results).expanduser()))
    elif config.verify is not None:
        if config.against is None:
            raise UserError("verify=DIR needs against=DIR, records of your own of the same protocol")
        print(verify(existing("verify", config.verify), existing("against", config.against), baseline).text)
    elif config.folder is not None:
        folder = existing("folder", config.folder)
        if config.name is None:
            raise UserError("name=WHO is missing: who submits, as the page will say")
        default = f"{folder.parent.name}-{folder.name}.zip"
        print(pack(folder, config.name, Path(config.out or default).expanduser()))
