"""Every YAML of every group composes, and what it names can be built."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from attention_zoo.contract import Pattern
from cab import schema
from cab.compose import Composer
from cab.task_settings import make_task, task_card

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
LENGTH = 16


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    with Composer() as opened:
        yield opened


@pytest.mark.parametrize("verb", sorted(schema.VERBS))
def test_every_verb_composes_to_its_dataclass(composer: Composer, verb: str) -> None:
    overrides = ["task=recall"] if issubclass(schema.VERBS[verb], schema.Run) else []
    assert isinstance(OmegaConf.to_object(composer.compose(verb, overrides)), schema.VERBS[verb])


def test_a_search_composes_what_a_run_does_but_for_the_split(composer: Composer) -> None:
    words = ["task=recall", "protocol=cab2023", "tracker=wandb", "tracker.mode=offline", "trainer.max_steps=3"]
    run, tune = (OmegaConf.to_container(composer.compose(verb, words)) for verb in ("run", "tune"))
    assert isinstance(run, dict)
    assert isinstance(tune, dict)
    assert {key: tune[key] for key in run} == {**run, "split": "validation"}


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_of_every_group_composes_in_a_verb_that_has_the_group(
    composer: Composer, group: str, name: str
) -> None:
    verbs = {"measure": "efficiency", "experiment": "dropin"}
    overrides = [f"{group}={name}", *(["task=recall"] if group != "task" else [])]
    verb = verbs.get(group, "run")
    config = composer.compose(verb, overrides if verb == "run" else overrides[:1])
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "attention"])
def test_every_attention_setting_builds_in_every_pattern_of_its_card(composer: Composer, name: str) -> None:
    (setting,) = composer.settings([name])
    assert set(setting.options) == set(setting.kind.option_parameters()), "the YAML shows every option"
    for pattern in Pattern:
        if pattern in setting.card.supports:
            setting.build(8, 2, pattern, max_length=LENGTH)


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "task"])
def test_every_task_is_made_in_every_pattern_and_its_card_is_whole(composer: Composer, name: str) -> None:
    config = composer.compose("run", [f"task={name}"])
    node = OmegaConf.to_container(config.task, resolve=True)
    assert isinstance(node, dict)
    target = str(node.pop("_target_"))
    card = task_card(name, target)
    assert card.name == name
    assert card.primary_pattern in card.patterns
    assert card.floor in card.floors
    for pattern in card.patterns:
        task = make_task(name, target, {**node, "pattern": pattern})
        assert task.size in card.lengths
        assert task.recipe.max_steps >= 0


def test_protocols_name_only_what_is_there(composer: Composer) -> None:
    for _, name in [option for option in OPTIONS if option[0] == "protocol"]:
        protocol = composer.compose("leaderboard", [f"protocol={name}"]).protocol if name != "adhoc" else None
        if protocol is not None:
            assert set(protocol.attentions) <= set(composer.options("attention"))
            assert set(protocol.tasks) <= set(composer.options("task"))
