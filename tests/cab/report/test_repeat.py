"""The command that a cell shows makes that cell: composed again, it says what the record says."""

from __future__ import annotations

import shlex

from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attention_zoo.contract import Pattern
from cab.compose import Composer
from cab.measure.workload import LEVELS, PHASES
from cab.report.cells import repeat
from cab.schema import Efficiency

ROWS = st.fixed_dictionaries(
    {
        "protocol": st.just("adhoc"),
        "metric": st.just("ratio"),
        "setting": st.sampled_from(["sdpa", "sdpa[impl=math]", "performer_cab"]),
        "pattern": st.sampled_from([str(pattern) for pattern in Pattern]),
        "level": st.sampled_from(LEVELS),
        "phase": st.sampled_from(PHASES),
        "length_q": st.integers(1, 9000),
        "length_kv": st.integers(1, 9000),
        "batch": st.integers(1, 8),
        "heads": st.integers(1, 16),
        "head_dim": st.integers(1, 128),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "compiled": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)  # each composes a config
@given(row=ROWS)
def test_the_command_of_a_cost_cell_says_what_its_record_says(row: dict[str, object]) -> None:
    command = repeat(row)
    assert command is not None
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("cab", "efficiency")
    with Composer() as composer:
        config = OmegaConf.to_object(composer.compose(verb, words))
    assert isinstance(config, Efficiency)
    measure = config.measure
    name, _, impl = str(row["setting"]).partition("[impl=")
    assert config.attentions == [name]
    assert config.impl == [impl.removesuffix("]") or "auto"]
    assert config.patterns == [row["pattern"]]
    assert (config.lengths, config.lengths_key or config.lengths) == ([row["length_q"]], [row["length_kv"]])
    assert (measure.levels, measure.phases) == ([row["level"]], [row["phase"]])
    shape = (measure.batch, measure.heads, measure.head_dim, config.dtype, measure.compile)
    assert shape == (row["batch"], row["heads"], row["head_dim"], row["dtype"], row["compiled"])
