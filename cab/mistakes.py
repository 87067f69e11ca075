"""One line for a mistake in a config: the value, what is allowed, the nearest."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from attention_zoo.errors import UnknownName
from cab.errors import UserError, folded


def check_overrides(overrides: Sequence[Override], groups: Sequence[str]) -> None:
    """Raises :class:`UserError` for a list where a group wants one of its options."""
    for override in overrides:
        value = override.value()
        if override.key_or_group in groups and isinstance(value, list):
            listed = ",".join(map(str, value))
            raise UserError(
                f"{override.key_or_group} takes one value, not the list [{listed}]: "
                f"sweep with cab run -m {override.key_or_group}={listed}"
            )


def check_sweeps(overrides: Sequence[Override]) -> None:
    """Raises :class:`UserError` for what a sweep does not do, because a search does it."""
    for override in overrides:
        if override.key_or_group.replace(".", "/").startswith("hydra/sweeper"):
            raise UserError(
                f"{override.input_line}: the sweeper is ours, which plans from the records; "
                "cab tune searches over options, with Optuna"
            )
        if override.is_interval_sweep():
            raise UserError(
                f"{override.input_line}: an interval cannot be run through; cab tune searches it, cab run -m takes "
                "values separated by commas"
            )


def explain(verb: str, error: Exception, options: Callable[[str], list[str]]) -> str:
    """The line for an error of Hydra or OmegaConf; ``options`` lists the configs of a group."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return str(UnknownName(group, name, set(error.options or options(group)) - {"schema"}))
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: give KEY=VALUE, with quotes around what the shell would take apart"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and "not in" in str(cause):
        return _unknown_key(cause)
    if isinstance(cause, OmegaConfBaseException):
        return _wrong_value(cause, str(error))
    return _plain(verb, str(error), options)


def _unknown_key(cause: OmegaConfBaseException) -> str:
    full = str(cause.full_key or cause.key)
    parent, _, last = full.rpartition(".")
    # A mapping that a config file wrote knows its keys by what stands in it; so does a dataclass.
    node = cause.parent_node
    allowed = (
        [str(key) for key in node if str(key) not in ("hydra", "_target_")] if isinstance(node, DictConfig) else []
    )
    return str(UnknownName(f"key of {parent}" if parent else "key", last, allowed))


def _wrong_value(cause: OmegaConfBaseException, text: str) -> str:
    key = str(cause.full_key or cause.key)
    message = str(cause.msg or cause).splitlines()[0]
    given = re.search(r"override ([^=]+)=(.*)", text)
    value = given[2] if given else str(cause.value)
    if "is not a ListConfig" in message:
        return f"{key} takes a list, not the one value {value!r}: give {key}=[{value}]"
    if value.startswith("[") and ("list" in message.lower() or "ListConfig" in message):
        return f"{key} takes one value, not the list {value}: sweep with cab run -m {key}={value[1:-1]}"
    return f"{key}: {folded(message)}"


def _plain(verb: str, text: str, options: Callable[[str], list[str]]) -> str:
    if several := re.search(r"Ambiguous value for argument '(.+?)'", text):
        return f"{several[1]!r} names several values: give -m to sweep over them, or [a,b] where a list is wanted"
    if missing := re.search(r"You must specify '(.+?)'", text):
        group = missing[1]
        return f"{group} is missing: give {group}=NAME; allowed: {', '.join(options(group))}"
    if absent := re.search(r"Could not override '(.+?)'", text):
        return f"unknown key {absent[1]!r}: see 'cab {verb} --cfg job' for its keys"
    return folded(text.split("Set the environment variable")[0])
