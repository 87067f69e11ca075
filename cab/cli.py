"""The front end: takes the verb and its flags, opens Hydra, and turns what the user got wrong into one line.

Imports nothing heavy before a verb runs, so that help and a wrong verb answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cab import leaving
from cab.errors import UNWRITABLE, UserError, unknown
from cab.help import VERBS, overview, page

EXIT_FAILED = 1
EXIT_USAGE = 2


@dataclass(frozen=True)
class Arguments:
    """A parsed command line. ``show`` is ``job``, ``hydra`` or ``all`` for ``--cfg``."""

    verb: str
    overrides: tuple[str, ...] = ()
    multirun: bool = False
    show: str | None = None
    resolve: bool = False
    config_dir: Path | None = None
    help: bool = False


FLAGS = {
    "--multirun": "-m",
    "--cfg": "-c",
    "--resolve": "-r",
    "--config-dir": "-cd",
    "--help": "-h",
    "--shell-completion": "-sc",
}
_SHOWN = ("job", "hydra", "all")


def parse(argv: Sequence[str]) -> Arguments:
    """The command line ``cab VERB [FLAG ...] [OVERRIDE ...]``; raises :class:`UserError` for what it does not know."""
    verb, *rest = argv
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    long = {short: name for name, short in FLAGS.items()}
    overrides: list[str] = []
    found: dict[str, str] = {}
    queue = list(rest)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = long.get(flag, flag)
        if flag not in FLAGS or flag == "--shell-completion":
            raise unknown("flag", flag, set(FLAGS) - {"--shell-completion"})
        if flag in ("--cfg", "--config-dir") and not equals:
            if not queue:
                raise UserError(f"{flag} needs a value")
            value = queue.pop(0)
        found[flag] = value
    if found.get("--cfg", "job") not in _SHOWN:
        raise unknown("--cfg", found["--cfg"], _SHOWN)
    if "--multirun" in found and verb != "run":
        raise UserError(f"--multirun goes with run; how {verb} takes several values: 'cab {verb} --help'")
    for word in overrides:
        if ("=" not in word and not word.startswith("~")) or word.startswith("="):
            raise UserError(f"cannot read {word!r}: give KEY=VALUE; see 'cab {verb} --help'")
    return Arguments(
        verb=verb,
        overrides=tuple(overrides),
        multirun="--multirun" in found,
        show=found.get("--cfg"),
        resolve="--resolve" in found,
        config_dir=Path(found["--config-dir"]) if "--config-dir" in found else None,
        help="--help" in found,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0, 1 (something failed), 2 (the user's mistake)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except UserError as error:
        print(f"cab: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        # The reader of a pipe (head, say) has gone; point stdout away so that Python's own flush stays quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"cab: cannot write{where}: {error.strerror}; all that was recorded stands; make room and give the same "
            "command again, and it goes on where it was",
            file=sys.stderr,
        )
        return EXIT_FAILED


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("cab-attention"))
        return 0
    if words[0] in ("-sc", "--shell-completion") or words[1:2] in (["-sc"], ["--shell-completion"]):
        from cab.completion import complete

        return complete(words[1:] if words[0] in ("-sc", "--shell-completion") else words[2:])
    arguments = parse(words)
    if arguments.help:
        print(page(arguments.verb))
        return 0
    # Torch's profiler, which measures memory, and its C++ warnings would otherwise write between our lines.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from cab.commands import dispatch

    leaving.unwind()
    return dispatch(arguments)
