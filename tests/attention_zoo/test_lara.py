import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core, lara
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.reference import lara as oracle
from attention_zoo.reference import softmax as exact

NONCAUSAL = [Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS]


def _core(pattern="noncausal_self", *, width=4, heads=1, **options):
    return build_core("lara", heads, width, pattern, max_length=64, **{"num_landmarks": 5, **options})


def _estimate(q, k, v, mu, sigma, samples):
    """The estimate from ``samples`` samples of each N(mu_c, I), drawn with standard deviation ``sigma``."""
    mu = mu.repeat_interleave(samples, 2)
    w = mu + sigma * torch.randn_like(mu)
    kv, log_sum = lara.summarise(k, v, w, None)
    empty = torch.zeros(1, mu.shape[2], dtype=torch.bool)
    return lara.importance(q, mu, w, log_sum, None, empty) @ kv


def _few_tokens():
    q, k, v = torch.randn(3, 1, 1, 6, 4, dtype=torch.float64)
    q, k = q / 2, k / 2  # the variance of the weights is exponential in |q' + k'|^2
    return q, k, v, exact.dense_core(_core(), q, k, v)


def test_softmax_attention_is_the_expectation_over_ra_densities():
    # Proposals N(0, I): self-normalised importance sampling of p_n itself.
    q, k, v, softmax = _few_tokens()
    mu = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    errors = [(_estimate(q, k, v, mu, 1.0, n) - softmax).abs().max() for n in (200, 50_000)]
    # It falls as n^-1/2, here 16-fold; half of that is asked for. 0.1 at 200 samples is 0.006 at 50,000; 0.03 is safe.
    assert errors[1] < errors[0] / 8
    assert errors[1] < 0.03


def test_the_estimate_converges_with_exact_temperature_and_not_with_the_papers():
    q, k, v, softmax = _few_tokens()
    core = _core(num_landmarks=3, proposal="segment")
    mu = (core.landmarks(q, None, core.query_landmarks)[0] + core.landmarks(k, None, core.key_landmarks)[0]) * 4**-0.25
    error = {sigma: float((_estimate(q, k, v, mu, sigma, 100_000) - softmax).abs().max()) for sigma in (1.0, 4**-0.25)}
    # 300,000 samples: as above. Noise that is too small leaves an error of the order of the outputs' differences.
    assert error[1.0] < 0.03
    assert error[4**-0.25] > 0.06


def test_with_one_proposal_many_times_balance_weighs_all_alike():
    mu = torch.full((1, 1, 50, 4), 0.3, dtype=torch.float64)
    empty = torch.zeros(1, 50, dtype=torch.bool)
    alpha = lara.log_balance(torch.zeros(1, 1, 6, 50, dtype=torch.float64), mu, torch.randn_like(mu), empty).exp()
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 / 50))


def test_without_noise_the_two_temperatures_are_one_function():
    x = torch.randn(3, 1, 1, 20, 4)
    assert torch.equal(_core(temperature="paper", proposal="segment")(*x), _core(proposal="segment")(*x))


@pytest.mark.parametrize(("temperature", "sigma"), [("exact", 1.0), ("paper", 16**-0.25)])
def test_noise_is_drawn_in_training_only_at_the_scale_of_the_temperature(temperature, sigma):
    core = _core(width=16, noise=True, temperature=temperature)
    mu = torch.randn(4, 1, 500, 16)
    # 32,000 draws: the standard deviation is within 0.4 % of its own, five times over.
    assert abs(float((core.train().sample(mu) - mu).std()) / sigma - 1) < 0.02
    assert torch.equal(core.eval().sample(mu), mu)
    x = torch.randn(3, 1, 1, 20, 16)
    assert torch.equal(core(*x), core(*x))
    core.train()
    assert not torch.equal(core(*x), core(*x))


def test_balance_sums_to_one_over_the_proposals_where_nothing_is_clamped():
    mu = 0.1 * torch.randn(1, 1, 6, 4, dtype=torch.float64)  # near each other: no alpha is negative
    w = mu[:, :, :1].expand(-1, -1, 6, -1)  # one point, asked of all proposals
    empty = torch.tensor([[False, False, True, False, False, False]])
    affinity = 0.1 * torch.randn(1, 1, 3, 6, dtype=torch.float64)
    density = (-(w[:, :, :1] - mu).square().sum(-1) / 2).masked_fill(empty[:, None], -torch.inf).softmax(-1)
    relevance = affinity.masked_fill(empty[:, None, None], -torch.inf).softmax(-1)
    ours = lara.log_balance(affinity, mu, mu, empty).exp()
    at_own = (-(mu[:, :, :, None] - mu[:, :, None]).square().sum(-1) / 2).masked_fill(empty[:, None, None], -torch.inf)
    expected = at_own.softmax(-1).diagonal(dim1=-2, dim2=-1)[:, :, None] + relevance - 1 / 5
    torch.testing.assert_close(ours[..., ~empty[0]], expected[..., ~empty[0]])
    total = (density[:, :, None] + relevance - 1 / 5)[..., ~empty[0]].sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("pattern", [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS])
def test_the_causal_patterns_are_refused_with_the_reason(pattern):
    with pytest.raises(Unsupported, match="its proposals are means over"):
        build("lara", 8, 2, pattern, max_length=8)


@pytest.mark.parametrize("pattern", NONCAUSAL)
@pytest.mark.parametrize("options", [{}, {"proposal": "segment", "weighting": "query"}])
def test_flops_are_those_that_are_counted(pattern, options):
    core = _core(pattern, heads=2, **options).to("meta")
    length_k = 40 if pattern.is_cross else 50
    q, k, v = (torch.empty(3, 2, n, 4, device="meta") for n in (50, length_k, length_k))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, 50, length_k)


def test_a_side_with_fewer_tokens_than_landmarks_leaves_the_other_its_own():
    core = _core("noncausal_cross", proposal="segment", num_landmarks=4).double()
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (8, 2, 2))
    means, empty = core.landmarks(k, None, core.key_landmarks)
    assert empty.tolist() == [[False, False, True, True]]
    torch.testing.assert_close(means[:, :, :2], k)
    assert not means[:, :, 2:].any()
    torch.testing.assert_close(core(q, k, v), oracle.dense_core(core, q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_and_huge_inputs_have_finite_gradients(dtype):
    core = _core(width=8).to(dtype)
    for size in (0.0, 100.0):
        leaves = [(size * torch.randn(2, 1, 12, 8)).to(dtype).requires_grad_() for _ in range(3)]
        mask = torch.zeros(2, 12, dtype=torch.bool)
        mask[1] = True
        core(*leaves, key_padding_mask=mask).sum().backward()
        assert all(x.grad.isfinite().all() for x in (*leaves, *core.parameters()))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"proposal": "segments"}, "unknown proposal 'segments': did you mean 'segment'"),
        ({"temperature": "exactly"}, "unknown temperature 'exactly': did you mean 'exact'"),
        ({"weighting": "balanced"}, "unknown weighting 'balanced': did you mean 'balance'"),
        ({"num_landmarks": 0}, "num_landmarks=0"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        _core(**option)
