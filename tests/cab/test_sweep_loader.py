"""The sweep's loader composes what Hydra's composes, whatever was composed before."""

import copy

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cab.compose import Composer
from cab.sweep_loader import SweepLoader

SETTINGS = ("linear", "performer", "smyrf")
CELLS = st.fixed_dictionaries(
    {"task": st.sampled_from(("recall", "lm")), "attention": st.sampled_from(SETTINGS)},
    optional={
        "pattern": st.sampled_from(("causal_self", "noncausal_self")),
        "seed": st.integers(0, 3),
        "trainer.max_steps": st.integers(1, 9),
        "+task.unheard_of": st.just("[1,2]"),
    },
)


@settings(max_examples=12)  # composing as Hydra does takes most of the time
@given(st.lists(CELLS, min_size=1, max_size=4), st.booleans())
def test_each_config_equals_the_one_that_hydra_composes(cells: list[dict[str, object]], with_option: bool) -> None:
    with Composer():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        own = hydra.config_loader
        master = hydra.compose_config("run", ["results=somewhere"], RunMode.MULTIRUN, with_log_configuration=False)
        loader = SweepLoader(own.get_search_path())
        for cell in cells:
            overrides = [f"{key}={value}" for key, value in cell.items()]
            if with_option and cell["attention"] == "performer":
                overrides.append("attention.num_features=8")
            expected = own.load_sweep_config(master, copy.copy(overrides))
            found = loader.load_sweep_config(master, copy.copy(overrides))
            assert OmegaConf.to_container(found, resolve=False) == OmegaConf.to_container(expected, resolve=False)
            assert OmegaConf.get_type(found) is OmegaConf.get_type(expected)
            assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
            with_values = [OmegaConf.to_container(config, resolve=True) for config in (found, expected)]
            assert with_values[0] == with_values[1]
