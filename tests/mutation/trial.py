"""One trial of mutation: a question put to a changed copy of the package, in a process of its own.

The process is forked from one that has imported torch and run nothing, so that a trial costs no import of torch, and
what hangs, dies or takes too much memory takes nothing with it. The real package is never written to.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "attention_zoo"
TIME_LIMIT_S = 300.0
MEMORY_LIMIT = 8 << 30  # bytes of address space of a child: a mutated size must not take the machine with it

Question = Callable[[Path], object]


@dataclass(frozen=True)
class Trial:
    """``changes`` holds new sources by file name (``linear.py``); ``question`` is asked with the copy's folder on the
    path, and answers with what JSON can hold. ``about`` is for the caller."""

    changes: Mapping[str, str]
    question: Question
    about: Any = None


@dataclass(frozen=True)
class Answer:
    """What came of a trial: the question's ``value``, or why there is none (``broken``), and the seconds spent."""

    trial: Trial
    value: Any = None
    broken: str = ""
    seconds: float = 0.0


def prepare() -> None:
    """Imports what every child needs; called once, before the first trial."""
    import jaxtyping  # noqa: F401 - imported before the forks, so that no child has to
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True


@dataclass
class _Child:
    trial: Trial
    folder: tempfile.TemporaryDirectory[str]
    process: int
    pipe: int
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, trial: Trial) -> _Child:
        folder = tempfile.TemporaryDirectory(prefix="mutation-")
        copy = Path(folder.name) / "attention_zoo"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for name, source in trial.changes.items():
            (copy / name).write_text(source, encoding="utf-8")
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(read)
            with open(os.devnull, "w") as silent:
                os.dup2(silent.fileno(), 2)
            with os.fdopen(write, "w") as out:
                json.dump(_ask(Path(folder.name), trial.question), out)
            os._exit(0)
        os.close(write)
        return cls(trial, folder, process, read)

    def end(self, *, late: bool) -> Answer:
        if late:
            os.kill(self.process, signal.SIGKILL)
        with os.fdopen(self.pipe, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(self.process, 0)
        self.folder.cleanup()
        seconds = time.monotonic() - self.begun
        if late:
            return Answer(self.trial, broken=f"still running after {TIME_LIMIT_S:.0f} s", seconds=seconds)
        if status or not said:
            return Answer(self.trial, broken=f"the process died with status {status}", seconds=seconds)
        return Answer(self.trial, **json.loads(said), seconds=seconds)


def _ask(folder: Path, question: Question) -> dict[str, object]:
    """In the child: the answer, or what the changed package raised."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    sys.path.insert(0, str(folder))
    try:
        import attention_zoo

        assert Path(attention_zoo.__file__).is_relative_to(folder), "the changed package was not the one imported"
        return {"value": question(folder)}
    except Exception as error:  # noqa: BLE001 - a mutant may break in any way, at import too
        return {"broken": f"raised {type(error).__name__}: {error}"[:4000]}


def answers(trials: Iterable[Trial], *, processes: int = 1) -> Iterator[Answer]:
    """The answers as they come, with so many trials running at once. Call :func:`prepare` before."""
    waiting = iter(trials)
    running: dict[int, _Child] = {}
    try:
        while True:
            while len(running) < processes and (trial := next(waiting, None)) is not None:
                child = _Child.start(trial)
                running[child.pipe] = child
            if not running:
                return
            ready, _, _ = select.select(list(running), [], [], 1.0)
            late = [pipe for pipe, child in running.items() if time.monotonic() - child.begun > TIME_LIMIT_S]
            for pipe in {*ready, *late}:
                yield running.pop(pipe).end(late=pipe not in ready)
    finally:
        for child in running.values():
            child.end(late=True)
