"""Which folder a record belongs to: a part of a protocol's grid is the protocol's, anything else is not."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from cab.commands import EFFICIENCY_OWNED, EFFICIENCY_PARTS
from cab.compose import Composer
from cab.protocol import recorded_name


def name(*overrides: str) -> str:
    with Composer() as composer:
        config = OmegaConf.to_object(composer.compose("efficiency", overrides))
        owned, parts = EFFICIENCY_OWNED, EFFICIENCY_PARTS
        return recorded_name(composer, "efficiency", config, overrides, owned=owned, parts=parts)


@pytest.mark.parametrize(
    "overrides",
    [[], ["lengths=[512]"], ["attentions=[linear]", "patterns=[causal_self]"], ["threads=2"], ["results=elsewhere"]],
    ids=" ".join,
)
def test_a_part_of_the_grid_belongs_to_the_protocol(overrides: list[str]) -> None:
    assert name("protocol=quick", *overrides) == "quick"


@pytest.mark.parametrize(
    "override",
    [
        "lengths=[512,300]",
        "lengths_key=[512]",
        "measure.batch=2",
        "measure.min_pairs=1",
        "baselines=[softmax]",
        "impl=[math]",
    ],
)
def test_what_the_protocol_does_not_say_goes_elsewhere(override: str) -> None:
    assert re.fullmatch(r"quick\+[0-9a-f]{6}", name("protocol=quick", override))


def test_without_a_protocol_nothing_is_owned() -> None:
    assert name("lengths=[77]", "measure.batch=3") == "adhoc"


def test_the_grid_is_the_protocols() -> None:
    with Composer() as composer:
        config = composer.compose("efficiency", ["protocol=cab2023"])
    assert (config.measure.batch, config.fit, max(config.lengths)) == (4, "cab2023", 8192)
    assert config.measure.phases == ["training_forward"]
