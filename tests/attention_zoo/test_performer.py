import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build_core, performer
from attention_zoo.contract import Pattern
from attention_zoo.reference import performer as oracle
from attention_zoo.reference import softmax as exact

CAUSAL = [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS]


def _core(pattern="noncausal_self", *, width=8, heads=2, length=64, **options):
    options = {"num_features": 24, **options}
    return build_core("performer", heads, width, pattern, max_length=length, **options)


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
@pytest.mark.parametrize("pattern", Pattern)
@settings(max_examples=6, deadline=None)
@given(length_q=st.integers(1, 150), length_k=st.integers(1, 150), padded=st.booleans(), seed=st.integers(0, 99))
def test_equals_the_dense_oracle(assert_agreement, pattern, kernel, length_q, length_k, padded, seed):
    torch.manual_seed(seed)
    core = _core(pattern, width=4, length=150, kernel=kernel, orthogonal=seed % 2 == 0)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


@pytest.mark.parametrize("pattern", CAUSAL)
def test_steps_equal_the_whole(assert_steps_match, pattern):
    assert_steps_match(_core(pattern))


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_kernel_is_unbiased(orthogonal):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, 8, dtype=torch.float64) * 0.5  # |x'| near 0.8: the variance is exponential in it
    draws = []
    for _ in range(600):
        w = performer.gaussian_rows(16, 8, orthogonal=orthogonal, generator=generator)
        draws.append((performer.positive_features(x, w) * performer.positive_features(y, w)).sum(-1))
    estimates = torch.stack(draws)
    error = estimates.mean(0) - torch.exp((x * y).sum(-1) / 8**0.5)
    # Five standard errors of the mean of 600 draws, for 12 pairs.
    assert (error.abs() < 5 * estimates.std(0) / 600**0.5).all()


def test_orthogonal_rows_estimate_no_worse_than_independent_ones():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 8, dtype=torch.float64) * 0.5
    exact_kernel = torch.exp((x * y).sum(-1) / 8**0.5)
    mse = {}
    for orthogonal in (True, False):
        errors = []
        for _ in range(200):
            w = performer.gaussian_rows(8, 8, orthogonal=orthogonal, generator=generator)
            estimate = (performer.positive_features(x, w) * performer.positive_features(y, w)).sum(-1)
            errors.append((estimate - exact_kernel).square().mean())
        mse[orthogonal] = torch.stack(errors).mean()
    assert mse[True] < mse[False]


def test_rows_are_orthogonal_in_blocks_and_as_long_as_gaussian_ones():
    generator = torch.Generator().manual_seed(0)
    w = performer.gaussian_rows(20, 8, orthogonal=True, generator=generator)
    assert w.shape == (20, 8)
    for block in w.split(8):
        gram = block @ block.T
        # float32 QR of 8 x 8, rows of length 3.
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-4)
    many = performer.gaussian_rows(8000, 8, orthogonal=True, generator=generator)
    # |w|^2 is chi-square with 8 degrees of freedom: variance 16, so its mean over 8000 is 8 to 5 * 4 / 8000^0.5.
    assert abs(many.square().sum(-1).mean() - 8) < 5 * 4 / 8000**0.5
    # Haar: no direction is preferred. Each entry has mean 0 and variance 1; five standard errors.
    assert many.mean(0).abs().max() < 5 / 8000**0.5


def test_outputs_converge_to_softmax_with_the_number_of_features():
    q, k, v = torch.randn(3, 4, 2, 64, 16, dtype=torch.float64)
    q, k = q * 0.5, k * 0.5
    error = {}
    for features in (16, 256, 4096):
        core = _core(width=16, num_features=features).double()
        error[features] = (core(q, k, v) - exact.dense_core(core, q, k, v)).square().mean().sqrt()
    # Monte Carlo: a factor 16 in features is a factor 4 in error; half of it is asked for.
    assert error[256] < error[16] / 2
    assert error[4096] < error[256] / 2
    assert error[4096] < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_future_keys_do_not_change_one_bit_of_the_past(dtype):
    core = _core("causal_self", width=16, num_features=64, length=200)
    q, k, v = torch.randn(3, 1, 2, 200, 16, dtype=dtype)
    before = core(q, k, v)
    k[:, :, 90:] *= 3
    after = core(q, k, v)
    assert torch.equal(before[:, :, :90], after[:, :, :90])
    assert (before[:, :, 90:] - after[:, :, 90:]).abs().max() > 0.1


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
@pytest.mark.parametrize("pattern", Pattern)
def test_padding_equals_trimming(pattern, kernel):
    # Masking before the feature map would fail here: phi(0) is not 0.
    core = _core(pattern, kernel=kernel)
    q, k, v = torch.randn(3, 1, 2, 12, 8, dtype=torch.float64)
    mask = torch.arange(12)[None] >= 7
    padded = core(q, k, v, key_padding_mask=mask)[:, :, :7]
    # Rounding of the same sum at another length.
    torch.testing.assert_close(padded, core(q[:, :, :7], k[:, :, :7], v[:, :, :7]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_float32_holds_the_stabilised_features(width, std):
    core = _core("causal_self", width=width, num_features=256, length=256)
    q, k, v = torch.randn(3, 1, 2, 256, width)
    q, k = q * std, k * std
    expected = oracle.dense_core(core, q.double(), k.double(), v.double())
    # An exponent of size x is off by x 2^-24 after rounding; exponents here stay below 150, so 1e-5 relative in each of
    # numerator and denominator, and values reach 4.
    torch.testing.assert_close(core(q, k, v).double(), expected, rtol=0, atol=8e-5)


def test_bfloat16_in_bfloat16_out_within_its_rounding():
    core = _core("causal_self", width=64, num_features=256)
    q, k, v = torch.randn(3, 1, 2, 64, 64).bfloat16()
    out = core(q, k, v)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), core(q.float(), k.float(), v.float()), rtol=2**-8, atol=1e-4)


def test_norms_that_leave_float32_give_finite_outputs_and_gradients():
    core = _core("causal_self", width=64, num_features=256)
    x = [(torch.randn(1, 2, 64, 64) * 100).requires_grad_() for _ in range(3)]
    out = core(*x)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(y.grad.isfinite().all() for y in x)


def test_eval_is_fixed_and_training_redraws_at_the_interval():
    core = _core(redraw_interval=3)
    x = torch.randn(3, 1, 2, 5, 8)
    first = core.projection.clone()
    core.eval()
    for _ in range(5):
        core(*x)
    assert torch.equal(core.projection, first)
    core.train()
    seen = []
    for _ in range(7):
        core(*x)
        seen.append(core.projection.clone())
    assert [torch.equal(p, first) for p in seen] == [True] * 3 + [False] * 4
    assert torch.equal(seen[3], core.draw(1))
    assert torch.equal(seen[5], core.draw(1))
    assert torch.equal(seen[6], core.draw(2))
    never = _core(redraw_interval=0)
    kept = never.projection
    for _ in range(5):
        never(*x)
    assert never.projection is kept


def test_a_redraw_between_forward_and_backward_is_harmless():
    core = _core(redraw_interval=1)
    x = torch.randn(3, 1, 2, 5, 8, requires_grad=True)
    (core(*x) + core(*x)).sum().backward()
    assert x.grad.isfinite().all()


def test_the_state_dict_carries_projection_seed_and_count():
    one, other = _core(redraw_interval=4), _core(redraw_interval=4)
    x = torch.randn(3, 1, 2, 5, 8)
    for _ in range(3):
        one(*x)
    assert not torch.equal(one(*x), other(*x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(*x), other.eval()(*x))
    one.train()
    other.train()
    for _ in range(6):
        assert torch.equal(one(*x), other(*x))
    assert not torch.equal(one.projection, one.draw(0))
    assert torch.equal(one.projection, other.projection)


def test_the_projection_follows_the_global_seed_and_nothing_later_does():
    torch.manual_seed(5)
    first = _core()
    torch.manual_seed(5)
    second = _core()
    third = _core()
    assert torch.equal(first.projection, second.projection)
    assert not torch.equal(second.projection, third.projection)
    before = torch.get_rng_state()
    first.draw(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_draw_is_another():
    core = _core()
    draws = torch.stack([core.draw(n) for n in range(50)])
    assert len(draws.unique(dim=0)) == 50


def test_it_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        core = _core("causal_self")
    assert core.projection.is_meta
    x = torch.empty(1, 2, 5, 8, device="meta")
    assert core(x, x, x).shape == (1, 2, 5, 8)


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("length", [50, 300])
def test_flops_are_those_that_are_counted(pattern, length):
    core = _core(pattern, length=300).to("meta")
    length_k = 40 if pattern.is_cross else length
    q, k, v = (torch.empty(3, 2, n, 8, device="meta") for n in (length, length_k, length_k))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, length, length_k)


@pytest.mark.parametrize("pattern", Pattern)
def test_autocast_changes_nothing_inside(pattern):
    core = _core(pattern)
    x = torch.randn(3, 1, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = core(*x)
    assert torch.equal(inside, core(*x))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kernel": "relo"}, "unknown kernel 'relo': did you mean 'relu'"),
        ({"num_features": 0}, "num_features=0"),
        ({"redraw_interval": -1}, "redraw_interval=-1"),
        ({"features": 3}, "unknown option 'features'"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        _core(**option)
