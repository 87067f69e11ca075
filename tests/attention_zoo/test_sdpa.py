import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build_core
from attention_zoo.conformance import Mark, certify
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.errors import UnknownName
from attention_zoo.sdpa import KERNELS, SDPAAttention, SDPACore
from cab.measure.memory import peak_extra_bytes


@pytest.mark.parametrize("impl", SDPACore.implementations())
@pytest.mark.parametrize("pattern", Pattern)
def test_fused_and_materialised_are_the_same_mathematics(pattern, impl):
    torch.manual_seed(0)
    length_k = 70 if pattern.is_cross else 33
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (33, length_k, length_k))
    mask = torch.rand(2, length_k) < 0.5
    plain = build_core("softmax", 2, 8, pattern, max_length=33, max_length_key=70)
    fused = build_core("sdpa", 2, 8, pattern, max_length=33, max_length_key=70, impl=impl)
    for padding in (None, mask):
        torch.testing.assert_close(
            # Sums of 70 terms of unit scale in another order.
            fused(q, k, v, key_padding_mask=padding),
            plain(q, k, v, key_padding_mask=padding),
            rtol=1e-12,
            atol=1e-12,
        )


def test_only_the_fused_form_credits_the_causal_half():
    fused, plain = (build_core(n, 2, 8, "causal_self", max_length=100) for n in ("sdpa", "softmax"))
    assert plain.flops(3, 100, 100) == 4 * 3 * 2 * 100 * 100 * 8
    assert fused.flops(3, 100, 100) == 4 * 3 * 2 * (100 * 101 // 2) * 8
    unfused = build_core("sdpa", 2, 8, "causal_self", max_length=100, impl="math")
    assert unfused.flops(3, 100, 100) == plain.flops(3, 100, 100)


@pytest.mark.parametrize("name", ["softmax", "sdpa"])
def test_flops_are_those_that_are_counted(name):
    core = build_core(name, 2, 8, "causal_cross", max_length=10, max_length_key=20).to("meta")
    q, k, v = (torch.empty(3, 2, n, 8, device="meta") for n in (10, 20, 20))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, 10, 20)


def test_the_named_kernel_is_the_one_that_runs():
    length = 512
    q = torch.randn(1, 2, length, 8)
    weights = 2 * length**2 * q.element_size()

    def peak(impl):
        core = build_core("sdpa", 2, 8, "noncausal_self", max_length=length, impl=impl).eval()

        def call():
            with torch.inference_mode():
                return core(q, q, q)

        return peak_extra_bytes(call, "cpu", warm=call)

    assert peak("math") >= weights
    assert peak("flash") < weights / 4  # tiles of 512 keys at the most


def test_what_a_kernel_does_not_do_is_refused_and_not_done_by_another():
    q = torch.randn(1, 2, 5, 8)
    core = build_core("sdpa", 2, 8, "noncausal_self", max_length=5, dropout=0.5, impl="flash")
    with pytest.raises(Unsupported, match="no dropout on the CPU"):
        core.train()(q, q, q)
    core.eval()(q, q, q)
    torch.testing.assert_close(core(q, q, q[..., :4]), core(q, q, q)[..., :4])  # narrower values, padded


def test_a_kernel_that_a_device_lacks_is_unsupported(monkeypatch):
    monkeypatch.setitem(KERNELS, "flash", SDPBackend.EFFICIENT_ATTENTION)  # which the CPU has not
    core = build_core("sdpa", 2, 8, "noncausal_self", max_length=5, impl="flash")
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(Unsupported, match="no flash kernel for float32 on cpu, head size 8"):
        core(q, q, q)


def test_an_unknown_kernel_names_those_that_there_are():
    with pytest.raises(UnknownName, match="did you mean 'flash'"):
        build_core("sdpa", 2, 8, "noncausal_self", max_length=5, impl="flsh")


@pytest.mark.parametrize("impl", ["math", "flash"])
def test_each_kernel_has_a_certificate_and_says_whether_it_drops_out(impl):
    certificate = certify(SDPAAttention, options={"impl": impl})
    assert {part.mark for part in certificate.patterns.values()} == {Mark.CERTIFIED}
    dropout = [r.reason for part in certificate.patterns.values() for r in part.results if r.title == "dropout"]
    assert set(dropout) == ({"PyTorch's flash kernel has no dropout on the CPU"} if impl == "flash" else {""})
