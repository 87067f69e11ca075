"""Seeded faults of the zoo: a mistake that people make, put into a mechanism, its oracle untouched; is it noticed?

    python tests/mutation/seed.py [--list] [--processes N] [MECHANISM ...]
    python tests/mutation/seed.py --signs [MECHANISM ...]         changed signs instead: see mutate.py

``faults/<mechanism>.py`` holds ``FAULTS``, a list of (kind, old, new): source text that occurs exactly once in
``attention_zoo/<mechanism>.py``, and its faulty replacement. A fourth item in front names another file of the package
that the mechanism is built on. The kinds are those of the field (a mask tiled the wrong way, a statistic over the
future, a dropped accumulation, a wrong axis, a clamp, a sign ...): each mechanism has three faults or more, of three
kinds or more.

A mechanism is judged in every setting that ``conf/attention`` has of it, as ``cab check attentions=all`` judges it,
until a line of a certificate fails. A fault must give a wrong answer: one that raises, hangs or dies would be noticed
by anybody, so it is a mistake in the list. Exit status: 0 all noticed, 1 a fault survives, 2 the list is wrong.
``--list`` looks at the list only, and runs nothing.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge import first_failure
from trial import PACKAGE, Answer, Question, Trial, answers, prepare

FOLDER = Path(__file__).with_name("faults")
SETTINGS = PACKAGE.parent / "conf" / "attention"
LEAST = 3


class WrongList(Exception):
    """A fault file that does not say what to do."""


@dataclass(frozen=True)
class Fault:
    mechanism: str
    file: str
    kind: str
    old: str
    new: str

    def source(self) -> str:
        """The file's text with the fault in it."""
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        count = text.count(self.old)
        if count != 1:
            raise WrongList(f"{self.mechanism}, {self.kind}: occurs {count} times in {self.file}: {self.old!r}")
        faulty = text.replace(self.old, self.new)
        try:
            compile(faulty, self.file, "exec")
        except SyntaxError as error:
            raise WrongList(f"{self.mechanism}, {self.kind}: {self.file} would be no Python: {error}") from error
        return faulty


def faults(mechanism: str) -> list[Fault]:
    """The list of a mechanism; :class:`WrongList` where it is missing, too short or fits the source no more."""
    path = FOLDER / f"{mechanism}.py"
    if not path.exists():
        raise WrongList(f"{mechanism}: there is no {path.relative_to(PACKAGE.parent)}")
    found = []
    for row in runpy.run_path(str(path))["FAULTS"]:
        file, kind, old, new = row if len(row) == 4 else (f"{mechanism}.py", *row)
        found.append(Fault(mechanism, file, kind, old, new))
        found[-1].source()
    if min(len(found), len({fault.kind for fault in found})) < LEAST:
        raise WrongList(f"{mechanism}: {len(found)} faults are not {LEAST} of {LEAST} kinds")
    return found


def settings(mechanism: str) -> list[dict[str, Any]]:
    """Options of the settings in ``conf/attention``: the mechanism's own first, then the others of its module."""
    from omegaconf import OmegaConf

    named: dict[str, dict[str, Any]] = {}
    for path in sorted(SETTINGS.glob("*.yaml"), key=lambda path: (path.stem != mechanism, path.stem)):
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(node, dict)
        if str(node.pop("_target_")).startswith(f"attention_zoo.{mechanism}."):
            named[path.stem] = {str(name): value for name, value in node.items()}
    return list(named.values()) or [{}]


def _asked(mechanism: str) -> Question:
    cases = [(mechanism, options) for options in settings(mechanism)]
    return lambda folder: first_failure(cases)


def trials(mechanism: str) -> Iterator[Trial]:
    """The package as it is, which must pass, and each fault of the list."""
    question = _asked(mechanism)
    yield Trial({}, question, mechanism)
    for fault in faults(mechanism):
        yield Trial({fault.file: fault.source()}, question, fault)


def verdict(answer: Answer) -> tuple[int, str]:
    """The exit status that an answer asks for, and the words for it."""
    text, raised = answer.value or ("", False)
    if not isinstance(answer.trial.about, Fault):
        broken = answer.broken or text
        return (2, f"FAILS UNCHANGED  {broken}") if broken else (0, "certified")
    if answer.broken or raised:
        return 2, f"DOES NOT RUN  {answer.broken or text}"
    return (0, f"noticed  {text}") if text else (1, "SURVIVES")


def run(mechanisms: list[str], *, processes: int) -> int:
    """Prints a line for each trial as it ends; returns the worst exit status."""
    prepare()
    worst = 0
    wanted = [trial for mechanism in mechanisms for trial in trials(mechanism)]
    for answer in answers(wanted, processes=processes):
        status, words = verdict(answer)
        worst = max(worst, status)
        about = answer.trial.about
        name = f"{about.mechanism}: {about.kind}" if isinstance(about, Fault) else f"{about}: as it is"
        print(f"{name:<52}  {answer.seconds:5.1f} s  {words[:220]}", flush=True)
    return worst


def main() -> int:
    if "--signs" in sys.argv:
        sys.argv.remove("--signs")
        import mutate

        mutate.main()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mechanisms", nargs="*", help="all that have a list, where none is given")
    parser.add_argument("--processes", type=int, default=2, help="trials at a time")
    parser.add_argument("--list", action="store_true", help="look at the lists only")
    arguments = parser.parse_args()
    mechanisms = arguments.mechanisms or sorted(path.stem for path in FOLDER.glob("*.py"))
    try:
        if not arguments.list:
            return run(mechanisms, processes=arguments.processes)
        for mechanism in mechanisms:
            print(f"{mechanism}: {len(faults(mechanism))} faults")
    except WrongList as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
