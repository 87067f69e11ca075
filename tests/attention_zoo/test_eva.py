import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.eva import Partition, normalised_exp
from attention_zoo.reference import eva as oracle
from attention_zoo.reference import softmax as exact

SELF = [Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF]
# Chunks within windows, windows within chunks, each window a chunk; one token a chunk, one chunk for all.
SIZES = [(40, 8), (7, 4), (10, 8), (80, 2), (1, 5)]


def _core(pattern="noncausal_self", *, length=80, width=4, heads=2, **options):
    return build_core("eva", heads, width, pattern, max_length=length, **options)


@given(max_length=st.integers(1, 5000), num_landmarks=st.integers(1, 80), window=st.integers(1, 200))
def test_the_partition_is_nested_and_about_as_fine_as_asked(max_length, num_landmarks, window):
    partition = Partition.of(max_length, num_landmarks, window)
    assert min(partition.chunks_per_window, partition.windows_per_chunk) == 1
    # Rounding up to whole chunks adds less than one token to each.
    assert window <= partition.window < window + partition.chunks_per_window
    chunk = partition.block // partition.chunks_per_window
    asked = -(-max_length // num_landmarks)
    assert asked / 2 <= chunk <= max(asked, window)
    if asked <= window:
        assert chunk <= asked


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_dense_oracle(assert_agreement, pattern, sizes, padded):
    core = _core(pattern, num_landmarks=sizes[0], window=sizes[1])
    assert_agreement(core, oracle, 19, 19, padded=padded)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("prefix", [5, 24])
def test_steps_equal_the_whole(assert_steps_match, sizes, prefix):
    core = _core("causal_self", num_landmarks=sizes[0], window=sizes[1])
    assert_steps_match(core, prefix=prefix, steps=20)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_state_is_as_large_as_declared_at_every_length(sizes):
    core = _core("causal_self", num_landmarks=sizes[0], window=sizes[1])
    q, k, v = torch.randn(3, 2, 2, 60, 4)
    _, state = core.prefill(q[:, :, :1], k[:, :, :1], v[:, :, :1])
    for t in range(1, 60):
        assert state.nbytes == core.state_bytes(2, t) == core.prefill(q[:, :, :t], k[:, :, :t], v[:, :, :t])[1].nbytes
        _, state = core.step(*(x[:, :, t : t + 1] for x in (q, k, v)), state)


@pytest.mark.parametrize("pattern", SELF)
def test_with_equal_keys_only_the_projected_landmarks_are_approximate(pattern):
    # xi is the same for all tokens of a chunk, so beta_c is their mean: with equal values too, that value.
    core = _core(pattern, num_landmarks=10, window=4)
    q, k, v = torch.randn(3, 1, 2, 1, 4).expand(-1, -1, -1, 50, -1)
    # float32 averages of equal numbers.
    torch.testing.assert_close(core(q, k, v), v, rtol=1e-5, atol=1e-5)


def test_a_chunk_of_one_token_is_summarised_by_its_own_value():
    core = _core(num_landmarks=80, window=1).double()
    q, k, v = torch.randn(3, 1, 2, 80, 4, dtype=torch.float64)
    summary, _ = core.chunks(q, k, v, None, 1)
    assert summary.key.shape[2] == 80
    torch.testing.assert_close(summary.value, v)


def test_exact_weights_in_the_window_are_those_of_softmax_relative_to_each_other():
    core = _core(num_landmarks=10, window=8).double()
    q, k = torch.randn(2, 1, 2, 40, 4, dtype=torch.float64)
    probe = torch.eye(40, dtype=torch.float64).expand(1, 2, -1, -1)
    ours, softmax = core(q, k, probe), exact.dense_core(core, q, k, probe)
    for start in range(0, 40, 8):
        block = slice(start, start + 8)
        mine, theirs = ours[..., block, block], softmax[..., block, block]
        # Both sides are float64 softmaxes.
        torch.testing.assert_close(mine / mine.sum(-1, keepdim=True), theirs / theirs.sum(-1, keepdim=True))


def test_normalised_exp_is_softmax_and_zero_where_nothing_is_seen():
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [-torch.inf] * 3], dtype=torch.float64, requires_grad=True)
    weights, lse = normalised_exp(logits)
    torch.testing.assert_close(weights[0], logits[0].softmax(-1))
    torch.testing.assert_close(lse[0], logits[0].logsumexp(-1))
    assert not weights[1].any()
    assert lse[1] == -torch.inf
    (gradient,) = torch.autograd.grad((weights[:, :2]).square().sum() + lse[0], logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("pattern", [Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS])
def test_the_cross_patterns_are_refused_with_the_reason(pattern):
    with pytest.raises(Unsupported, match="in no block of the source"):
        build("eva", 8, 2, pattern, max_length=8)


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("length", [3, 50])
def test_flops_are_those_that_are_counted(pattern, sizes, length):
    core = _core(pattern, num_landmarks=sizes[0], window=sizes[1]).to("meta")
    q = torch.empty(3, 2, length, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        core(q, q, q)
    assert counter.get_total_flops() == core.flops(3, length, length)


@pytest.mark.parametrize("option", ["num_landmarks", "window"])
def test_wrong_options_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        _core(**{option: 0})
