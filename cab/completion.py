"""Shell completion: of the verb, and after it of the verb's keys and values through Hydra.

``eval "$(cab -sc install=bash)"`` makes the shell call ``cab -sc query=bash`` with the line in ``COMP_LINE``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from cab.errors import unknown
from cab.help import VERBS

SCRIPTS = {
    "bash": """\
_cab_complete() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" cab -sc query=bash 2>/dev/null))
    [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -F _cab_complete cab
""",
    "zsh": """\
_cab_complete() {
    local -a found
    found=("${(@f)$(COMP_LINE="$BUFFER" COMP_POINT="$CURSOR" cab -sc query=zsh 2>/dev/null)}")
    compadd -S '' -- $found
}
compdef _cab_complete cab
""",
    "fish": """\
function __cab_complete
    env COMP_LINE=(commandline -cp) cab -sc query=fish 2>/dev/null
end
complete -c cab -f -a '(__cab_complete)'
""",
}


def complete(words: Sequence[str]) -> int:
    """``install=SHELL`` prints the script, ``query=SHELL`` what completes ``COMP_LINE``, ``uninstall`` its undoing."""
    action, _, shell = (words[0] if words else "").partition("=")
    if action not in ("install", "uninstall", "query"):
        raise unknown("completion", action, ("install", "uninstall", "query"))
    if shell not in SCRIPTS:
        raise unknown("shell", shell, SCRIPTS)
    if action == "install":
        print(SCRIPTS[shell], end="")
    elif action == "uninstall":
        print({"bash": "complete -r cab", "zsh": "compdef -d cab", "fish": "complete -c cab -e"}[shell])
    else:
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        print("\n".join(completions(line[: int(point)] if point.isdigit() else line)))
    return 0


def completions(line: str) -> list[str]:
    """What may stand where the line ends."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote: nothing sensible to offer
        return []
    current = "" if not words or line[-1:].isspace() else words.pop()
    if not words:
        return []
    if len(words) == 1:
        return [verb for verb in VERBS if verb.startswith(current)]
    if words[1] not in VERBS:
        return []
    return _overrides(words[1], words[2:], current)


def _overrides(verb: str, given: list[str], current: str) -> list[str]:
    """Groups, their options, and keys of the composed config, as far as what is given composes."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from hydra.plugins.completion_plugin import CompletionPlugin
    from omegaconf.errors import OmegaConfBaseException

    from cab.compose import Composer
    from cab.errors import UserError
    from cab.schema import VERBS as SCHEMAS
    from cab.schema import Run

    of_runs = issubclass(SCHEMAS[verb], Run)
    with Composer() as composer:
        groups = {g for g in composer.loader.list_groups("") if g not in ("hydra", "measure") or not of_runs}
        key, equals, value = current.partition("=")
        if equals and key in groups:
            prefix, _, last = value.rpartition(",")
            start = f"{key}={prefix}," if prefix else f"{key}="
            return [f"{start}{option}" for option in composer.options(key) if option.startswith(last)]
        try:
            parsed = composer.parse([word for word in given if "=" in word])
            config = hydra_compose(verb, [each.input_line or "" for each in parsed if not each.is_sweep_override()])
        except (HydraException, OmegaConfBaseException, UserError):
            config = hydra_compose(verb, ["task=recall"] if of_runs else [])
        found = set(CompletionPlugin._get_matches(config, current))
        if not equals:
            # A group is chosen (task=...), though in the composed config it is a mapping (task.).
            found |= {f"{group}=" for group in groups & set(config) if group.startswith(current)}
        return sorted(str(match) for match in found)
