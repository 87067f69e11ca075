"""Mutation of the zoo: changes one sign of a mechanism, its oracle untouched, and asks whether conformance notices.

    python tests/mutation/mutate.py [--json] [MECHANISM ...]

A *sign* is: ``a + b`` or ``a - b`` (also as ``+=``, ``-=``), a unary minus, the direction of a comparison (``<`` and
``>``, ``<=`` and ``>=``), and that of a returned tensor (``return x`` becomes ``return -x`` where the annotation is one
floating tensor). Every sign of the file is changed, one at a time, but for those that cannot change what an attention
computes, by these rules:

* ``flops``: an analytic count, held to a measured one elsewhere;
* the law of a random draw: a function that takes or makes a generator, and the arguments of ``torch.randint``. The
  oracle reads what was drawn, so any draw is right; the law is held by the mechanism's own statistical tests;
* what only says something: ``raise`` and ``assert`` statements, annotations, docstrings and f-strings;
* the card (a module-level assignment in capitals whose value is a ``Card`` or a copy of one): it is the claim.

A mechanism with fewer than three signs in its own file is tried with those of the mechanisms that it is built on too
(``efficient`` on ``sdpa``), on lines that it runs: they must be noticed by its own certificate. A mechanism is judged
with its default options or, where it has some, those of ``VARIANTS``: together they reach all its lines, with blocks so
small that there are many.

Of the mutants that survive, those are equivalent by rule that :func:`equivalent` names. The rest are holes.

A mutant is tried in a copy of the package, never in the real one, in a forked child of a process that has imported
torch and run nothing. Lines of the certificate are made until one fails. What hangs or dies counts as caught.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

TraceFunction = Callable[[FrameType, str, object], object]
PACKAGE = Path(__file__).resolve().parents[2] / "attention_zoo"
TIME_LIMIT_S = 300.0
MEMORY_LIMIT = 8 << 30  # bytes of address space of a child: a mutated size must not take the machine with it

# What is shared is held by the mechanisms that are built on it.
JUDGES = {"primitives": ("linear", "smyrf", "reformer")}

VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "performer": ({"kernel": "relu", "num_features": 24}, {"num_features": 24, "orthogonal": False}),
    "reformer": (
        {"bucket_size": 8, "rounds": 2},
        {"bucket_size": 8, "rounds": 2, "shared_qk": False, "correct_duplicates": False},
        {"bucket_size": 8, "rounds": 2, "attend_across_buckets": True},
    ),
    "smyrf": ({"cluster_size": 8, "rounds": 2}, {"cluster_size": 8, "rounds": 2, "correct_duplicates": True}),
}

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
}
# Survivors that compute the same: a regular expression on ``<source line> | <change>``, and why.
EQUIVALENT = (
    (r".* \| -2  ->  \+2", "axis -2 of a tensor [B, H, L, D] is its axis 2"),
    (r".*\.flatten\(-3, -2\).* \| -3  ->  \+3", "axis -3 of a tensor [B, H, R, C, m, D] is its axis 3"),
    (r"count = .*valid\.sum\(-1\) \| -1  ->  \+1", "axis -1 of a mask [B, L] is its axis 1"),
    (
        r"return (torch\.exp\(x\.clamp\(max=0\.0\)\) \+ F\.relu\(x\)|F\.relu\(project\(x, .*) \| return .*",
        "one feature map of queries and keys alike: they enter as phi(q) . phi(k), where the two signs cancel",
    ),
    (
        r"self\.training_calls \+= 1 \| .*",
        "the clock of redraws runs backwards: the same intervals, other independent draws",
    ),
    (
        r".*(torch\.where\(rank < count, .*, -1\)|masked_fill\(~valid\[.*\], -1\)) \| -1  ->  \+1",
        "a mark on padded keys, which no query sees whatever their mark",
    ),
    (
        r".*torch\.minimum\(.*, pieces - 1\) \| pieces - 1  ->  pieces \+ 1",
        "a bound that binds for padded items and empty blocks only, whose results are thrown away",
    ),
    (
        r".*\.clamp\(max=num_groups - 1\) \| num_groups - 1  ->  num_groups \+ 1",
        "a bound that binds for empty blocks only, whose results are thrown away",
    ),
    (
        r".*\.roll\(-other, .* \| -other  ->  \+other",
        "all rounds but the one at hand are counted, from the last to the first",
    ),
    (
        r".*rounds < 256.* \| rounds < 256  ->  rounds > 256",
        "the integer type in which at most 256 meetings are counted",
    ),
    (
        r".*\.clamp\(max=length_k - 1\) \| length_k - 1  ->  length_k \+ 1",
        "a bound that the first key of a piece cannot reach: it is at most cluster_size (ceil(Lk / cluster_size) - 1)",
    ),
    (
        r"length_q, length_k = query_hash\.shape\[-1\].* \| -1  ->  \+1",
        "the width of the blocks in which queries are laid out, of which the result is independent",
    ),
    (
        r"return x\.reshape\(count \* length, width\)\.index_select.* \| return .*",
        "rows are gathered twice in every product: q with k, and v before and after the weights",
    ),
)


@dataclass(frozen=True)
class Mutant:
    """The ``index``-th sign of a file, on ``line``, and what changing it does to the code there."""

    mechanism: str
    file: str
    index: int
    line: int
    change: str
    source: str


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    caught: bool
    by: str  # the line of the certificate that failed, or how the child ended
    equivalent: str = ""  # why a survivor computes the same


def _is_card(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    return node.targets[0].id.endswith("CARD") and isinstance(node.value, ast.Call)


def _signs(tree: ast.Module) -> Iterator[tuple[ast.AST, int]]:
    """Nodes with a sign, in source order, with which of their operators it is."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arg):
            continue
        if isinstance(node, ast.stmt) and _is_card(node):
            continue
        if isinstance(node, ast.FunctionDef) and (node.name == "flops" or _draws(node)):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.randint":
            continue
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.UnaryOp) and isinstance(
            node.op, ast.Add | ast.Sub | ast.USub
        ):
            yield node, 0
        elif isinstance(node, ast.Compare):
            yield from ((node, place) for place, op in enumerate(node.ops) if type(op) in SWAPPED)
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.FunctionDef):
            children = [child for child in children if child is not node.returns]
            if _returns_a_tensor(node):
                returns = [part for part in ast.walk(node) if isinstance(part, ast.Return) and part.value is not None]
                yield from ((part, 0) for part in returns)
        elif isinstance(node, ast.AnnAssign):
            children = [child for child in children if child is not node.annotation]
        queue = children + queue


def _draws(node: ast.FunctionDef) -> bool:
    """Whether a function takes a generator or makes one."""
    made = any(isinstance(part, ast.Call) and ast.unparse(part.func) == "torch.Generator" for part in ast.walk(node))
    return made or any(argument.arg == "generator" for argument in [*node.args.args, *node.args.kwonlyargs])


def _returns_a_tensor(node: ast.FunctionDef) -> bool:
    annotation = "" if node.returns is None else ast.unparse(node.returns)
    return annotation == "Tensor" or annotation.startswith("Float[")


def equivalent(mutant: Mutant) -> str:
    """Why a surviving mutant computes the same as the original; empty where no rule says so."""
    for change, reason in EQUIVALENT:
        if re.fullmatch(change, f"{mutant.source} | {mutant.change}"):
            return reason
    return ""


def _flip(node: ast.AST, place: int) -> ast.AST:
    """The node with its sign changed; a new node where the sign is the node."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Compare):
        node.ops[place] = SWAPPED[type(node.ops[place])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Return):
        assert node.value is not None
        node.value = ast.UnaryOp(ast.USub(), node.value)
    return node


def mutants(mechanism: str, reached: dict[str, set[int]]) -> list[Mutant]:
    """Every sign that the rules leave: of the mechanism's file, and of what it is built on where that has but few."""
    own = _mutants(mechanism, mechanism)
    if len(own) >= 3 or mechanism in JUDGES:
        return own
    built_on = [mutant for file in _built_on(mechanism) for mutant in _mutants(mechanism, file)]
    return own + [mutant for mutant in built_on if mutant.line in reached.get(mutant.file, ())]


def _mutants(mechanism: str, file: str) -> list[Mutant]:
    text = (PACKAGE / f"{file}.py").read_text(encoding="utf-8")
    lines, tree, found = text.splitlines(), ast.parse(text), []
    for index, (node, place) in enumerate(_signs(tree)):
        before = ast.unparse(node)
        after = ast.unparse(_flip(copy.deepcopy(node), place))
        line = node.lineno  # type: ignore[attr-defined]
        found.append(Mutant(mechanism, file, index, line, f"{before}  ->  {after}", lines[line - 1].strip()))
    return found


def _built_on(file: str) -> list[str]:
    """Mechanisms that a file imports, and what they import."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / f"{file}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "attention_zoo":
            for alias in node.names:
                found += [alias.name, *_built_on(alias.name)]
    return list(dict.fromkeys(found))


def mutated_source(mutant: Mutant) -> str:
    tree = ast.parse((PACKAGE / f"{mutant.file}.py").read_text(encoding="utf-8"))
    node, place = list(_signs(tree))[mutant.index]
    _flip(node, place)
    return ast.unparse(ast.fix_missing_locations(tree))


def judges(file: str) -> tuple[str, ...]:
    return JUDGES.get(file, (file,))


def first_failure(names: tuple[str, ...]) -> str | None:
    """The first line of a certificate that fails for one of these mechanisms, or None."""
    from attention_zoo import registry
    from attention_zoo.conformance import Oracle, Result, Status
    from attention_zoo.conformance.certify import judge_excuses, lines, options_exclude
    from attention_zoo.contract import Pattern

    trials = [(name, options) for name in names for options in VARIANTS.get(name, ({},))]
    for name, options in trials:
        kind = registry.mechanism(name)
        oracle = Oracle.find(kind)
        found: dict[Pattern, list[Result]] = {}
        for pattern in kind.card.supports:
            if options_exclude(kind, options, pattern):
                continue
            found[pattern] = []
            for line in lines(kind, options, pattern, oracle):
                if line.status is Status.FAIL:
                    return f"{name} {options or ''} {pattern.short} {line}"
                found[pattern].append(line)
        if not options:
            judge_excuses(found)
        for pattern, results in found.items():
            for line in results:
                if line.status is Status.FAIL:
                    return f"{name} {options or ''} {pattern.short} {line}"
    return None


def _reached(folder: Path, reached: dict[str, set[int]]) -> None:
    """Notes the lines of the package's own files that run from now on."""

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        path = Path(frame.f_code.co_filename)
        if path.parent != folder / "attention_zoo":
            return None
        reached.setdefault(path.stem, set()).add(frame.f_lineno)
        return trace

    sys.settrace(trace)


def _child(folder: Path, names: tuple[str, ...], out: int, *, traced: bool) -> None:
    """Writes why conformance refuses the package in ``folder`` and, on the next line, the lines that ran."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    sys.path.insert(0, str(folder))
    reached: dict[str, set[int]] = {}
    try:
        import attention_zoo

        assert Path(attention_zoo.__file__).is_relative_to(folder), "the mutant's package was not the one imported"
        if traced:
            _reached(folder, reached)
        text = first_failure(names) or ""
    except Exception as error:  # noqa: BLE001 - a mutant may break in any way, at import too; breaking is being caught
        text = f"raised {type(error).__name__}: {error}"
    answer = {"text": text[:4000], "reached": {file: sorted(numbers) for file, numbers in reached.items()}}
    os.write(out, json.dumps(answer).encode())


def attempt(
    source: str | None, file: str, names: tuple[str, ...], folder: Path, *, traced: bool = False
) -> tuple[str, dict[str, set[int]]]:
    """How conformance answers to ``source`` in the place of ``file`` (empty: content), and the lines that ran."""
    target = folder / "attention_zoo"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    if source is not None:
        (target / f"{file}.py").write_text(source, encoding="utf-8")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with open(os.devnull, "w") as silent:
            os.dup2(silent.fileno(), 2)
        _child(folder, names, write, traced=traced)
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], TIME_LIMIT_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not ready:
        return f"still running after {TIME_LIMIT_S:.0f} s", {}
    if status or not said:
        return f"the process died with status {status}", {}
    answer = json.loads(said)
    return answer["text"], {name: set(numbers) for name, numbers in answer["reached"].items()}


def run(files: list[str], *, quiet: bool = False) -> list[Outcome]:
    """Tries every mutant of these files; the unmutated package must pass first."""
    import jaxtyping  # noqa: F401 - imported before the forks, so that no child has to
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        for file in files:
            clean, reached = attempt(None, file, judges(file), folder, traced=not _mutants(file, file)[2:])
            if clean:
                raise SystemExit(f"{file} fails unmutated: {clean}")
            for mutant in mutants(file, reached):
                begin = time.monotonic()
                text, _ = attempt(mutated_source(mutant), mutant.file, judges(file), folder)
                outcome = Outcome(mutant, bool(text), text, "" if text else equivalent(mutant))
                outcomes.append(outcome)
                if not quiet:
                    verdict = "caught    " if text else "equivalent" if outcome.equivalent else "SURVIVES  "
                    where, spent = f"{mutant.file}.py:{mutant.line}", time.monotonic() - begin
                    print(f"{verdict} {where}  {mutant.change}   [{text[:110]}] {spent:.1f} s", flush=True)
    return outcomes


def all_files() -> list[str]:
    """The mechanisms, and what they share."""
    others = {"__init__", "contract", "errors", "registry"}
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", help="mechanisms; all, and what they share, where none is given")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON, and nothing else")
    arguments = parser.parse_args()
    files = arguments.files or all_files()
    outcomes = run(files, quiet=arguments.json)
    if arguments.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
        return
    for file in files:
        of_file = [outcome for outcome in outcomes if outcome.mutant.mechanism == file]
        caught = sum(outcome.caught for outcome in of_file)
        same = sum(bool(outcome.equivalent) for outcome in of_file)
        print(
            f"{file}: of {len(of_file)} signs {caught} caught, {same} equivalent, {len(of_file) - caught - same} holes"
        )


if __name__ == "__main__":
    main()
