"""Mutation of the zoo: changes one sign of a mechanism, its oracle untouched, and asks whether conformance notices.

    python tests/mutation/mutate.py [--json] [MECHANISM ...]

A *sign* is: ``a + b`` or ``a - b`` (also as ``+=``, ``-=``), a unary minus, the direction of a comparison (``<`` and
``>``, ``<=`` and ``>=``), and that of a returned tensor (``return x`` becomes ``return -x`` where the annotation is one
floating tensor). Every sign of the file is changed, one at a time, but for those that cannot change what an attention
computes, by these rules:

* ``flops``: an analytic count, held to a measured one elsewhere;
* ``GPU_ONLY``: functions that a CPU never runs, held to the same results on a CPU by tests of their own;
* the law of a random draw: a function that takes or makes a generator, and the arguments of ``torch.randint`` and of
  ``nn.init``. The oracle reads what was drawn, so any draw is right; the law is held by the mechanism's own tests;
* ``INITIAL``: functions of what a parameter begins with. The oracle reads it from the layer; tests of the mechanism's
  own hold it;
* what only says something: ``raise`` and ``assert`` statements, annotations, docstrings and f-strings;
* the card (a module-level assignment in capitals whose value is a ``Card`` or a copy of one): it is the claim.

A mechanism with fewer than three signs in its own file is tried with those of the mechanisms that it is built on too
(``efficient`` on ``sdpa``), on lines that it runs: they must be noticed by its own certificate. A mechanism is judged
with its default options or, where it has some, those of ``VARIANTS``: together they reach all its lines, with blocks so
small that there are many.

Of the mutants that survive, those are equivalent by rule that :func:`equivalent` names. The rest are holes.

Each mutant is one trial (``trial.py``). Lines of the certificate are made until one fails. What hangs or dies counts as
caught.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from judge import first_failure
from trial import PACKAGE, Question, Trial, answers, prepare

TraceFunction = Callable[[FrameType, str, object], object]

# What is shared is held by the mechanisms that are built on it.
JUDGES = {"primitives": ("linear", "smyrf", "reformer"), "_banded": ("local",)}

GPU_ONLY = {"_scan_at_once"}  # tests/attention_zoo/test_primitives_scan.py

INITIAL = {"linear_frequencies", "inverse_frequencies", "legendre_frequencies"}  # tests/attention_zoo/test_s4d.py

VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "linear": ({}, {"feature_map": "relu"}),
    "linformer": ({}, {"share": "none"}),
    "performer": ({"kernel": "relu", "num_features": 24}, {"num_features": 24, "orthogonal": False}),
    "reformer": (
        {"bucket_size": 8, "rounds": 2},
        {"bucket_size": 8, "rounds": 2, "shared_qk": False, "correct_duplicates": False},
        {"bucket_size": 8, "rounds": 2, "attend_across_buckets": True},
    ),
    "sdpa": ({}, {"impl": "flash"}),
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
    (r"blind = \(~key_padding_mask\)\.cumsum\(-1\).* \| -1  ->  \+1", "axis -1 of a mask [B, L] is its axis 1"),
    (
        r"if q\.shape\[-1\] != v\.shape\[-1\]:.* \| -1  ->  \+1",
        "pads by nothing where the widths agree; only with as many heads as values are wide would it not pad",
    ),
    (r"count = .*valid\.sum\(-1\) \| -1  ->  \+1", "axis -1 of a mask [B, L] is its axis 1"),
    (
        r"return (torch\.exp\(x\.clamp\(max=0\.0\)\) \+ F\.relu\(x\)|F\.relu\(x\) \+ RELU_OFFSET"
        r"|F\.relu\(project\(x, .*) \| return .*",
        "one feature map of queries and keys alike: they enter as phi(q) . phi(k), where the two signs cancel",
    ),
    (
        r".*math\.log\(len\(projection\)\) / 2\).* \| .* \+ math\.log\(.*  ->  .* - math\.log\(.*",
        "a constant factor of all features of a row, which cancels in the ratio of the sums",
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
        r".*\.clamp\(max=length_k - 1\) \| length_k - 1  ->  length_k \+ 1",
        "a bound that the first key of a piece cannot reach: it is at most cluster_size (ceil(Lk / cluster_size) - 1)",
    ),
    (
        r"length_q, length_k = query_hash\.shape\[-1\].* \| -1  ->  \+1",
        "the width of the blocks in which queries are laid out, of which the result is independent",
    ),
    (
        r"(tokens = valid\.sum\(-1\)|order = \(~valid\)|size = past\.shape\[-1\]).* \| -1  ->  \+1",
        "axis -1 of a mask [B, L] or of kernels [d, C] is its axis 1",
    ),
    (r"out = .*key_padding_mask\.all\(-1\).* \| -1  ->  \+1", "axis -1 of a mask [B, L] is its axis 1"),
    (
        r"around = F\.pad\(.* \| width - 1  ->  width \+ 1",
        "one zero more behind the last value: fewer than a block, so that no window reads it",
    ),
    (
        r"return F\.scaled_dot_product_attention\(q, k, v(, attn_mask=visible \| blind)?\) \| return .*",
        "attention is applied twice in every product (nystromformer), where the two signs cancel",
    ),
    (
        r"return torch\.minimum\(rank, \(tokens - 1\)\.clamp\(min=0\)\) \| tokens - 1  ->  tokens \+ 1",
        "a bound that binds for runs that do not exist only, whose samples are not counted",
    ),
    (
        r"low, high = .* \| ascending\.shape\[-1\] - 1  ->  ascending\.shape\[-1\] \+ 1",
        "a bound that no piece with keys reaches: its first rank is below the number of keys",
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
        if isinstance(node, ast.FunctionDef) and (node.name in {"flops", *GPU_ONLY, *INITIAL} or _draws(node)):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("torch.randint", "nn.init.")):
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


def _reached(folder: Path, reached: dict[str, set[int]]) -> None:
    """Notes the lines of the package's own files that run from now on."""

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        path = Path(frame.f_code.co_filename)
        if path.parent != folder / "attention_zoo":
            return None
        reached.setdefault(path.stem, set()).add(frame.f_lineno)
        return trace

    sys.settrace(trace)


def _asked(names: tuple[str, ...], *, traced: bool) -> Question:
    """What conformance says of these mechanisms (empty: content), and which lines of the package ran for it."""
    cases = [(name, options) for name in names for options in VARIANTS.get(name, ({},))]

    def question(folder: Path) -> object:
        reached: dict[str, set[int]] = {}
        if traced:
            _reached(folder, reached)
        failure = first_failure(cases)
        return {
            "text": "" if failure is None else failure.text[:4000],
            "reached": {file: sorted(numbers) for file, numbers in reached.items()},
        }

    return question


def run(files: list[str], *, quiet: bool = False) -> list[Outcome]:
    """Tries every mutant of these files; the unmutated package must pass first."""
    prepare()
    outcomes = []
    for file in files:
        (clean,) = answers([Trial({}, _asked(judges(file), traced=not _mutants(file, file)[2:]))])
        if clean.broken or clean.value["text"]:
            raise SystemExit(f"{file} fails unmutated: {clean.broken or clean.value['text']}")
        reached = {name: set(numbers) for name, numbers in clean.value["reached"].items()}
        question = _asked(judges(file), traced=False)
        trials = (Trial({f"{m.file}.py": mutated_source(m)}, question, m) for m in mutants(file, reached))
        for answer in answers(trials):
            mutant, text = answer.trial.about, answer.broken or answer.value["text"]
            outcome = Outcome(mutant, bool(text), text, "" if text else equivalent(mutant))
            outcomes.append(outcome)
            if not quiet:
                verdict = "caught    " if text else "equivalent" if outcome.equivalent else "SURVIVES  "
                where = f"{mutant.file}.py:{mutant.line}"
                print(f"{verdict} {where}  {mutant.change}   [{text[:110]}] {answer.seconds:.1f} s", flush=True)
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
