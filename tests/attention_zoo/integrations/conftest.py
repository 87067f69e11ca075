import pytest

from attention_zoo.eligibility import eligible
from attention_zoo.integrations.transformers import register


@pytest.fixture(autouse=True)
def _registered() -> None:
    """With all defaults, whatever a test before has registered."""
    register(cross="causal_cross", **{name: {} for name in eligible()})
