"""What ``conf/`` ships, read without Hydra: quick enough for lists of test cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cab.settings import Setting

CONF = Path(__file__).resolve().parents[2] / "conf"


def nodes(group: str) -> dict[str, dict[str, Any]]:
    """The configs of a group by name, without what they take from others."""
    found = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(node, dict)
        found[path.stem] = {str(name): value for name, value in node.items() if "${" not in str(value)}
    return found


def attention_settings() -> dict[str, Setting]:
    """Every setting of ``conf/attention`` by name."""
    return {name: Setting.from_node(name, node) for name, node in nodes("attention").items()}
