"""Activation checkpointing: the same gradients to the bit, from less memory, for every mechanism and every backbone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shipped_configs import attention_settings, nodes
from torch import Tensor, nn

from attention_zoo.contract import Attention, Pattern
from cab.measure.memory import peak_extra_bytes
from cab.recomputation import blocks_of, recompute_activations
from cab.settings import Setting
from cab.slots import fill
from cab.task_settings import make_task
from cab.train import Learner
from tasks.layers import DecoderBlock, SelfAttentionBlock

NS, CS, NC, CC = Pattern
ATTENTIONS = attention_settings()
TASKS = [name for name in nodes("task") if name != "recall"]  # it has no blank batch
EXACT = Setting("sdpa", "attention_zoo.sdpa.SDPAAttention")
WIDTH, HEADS, LENGTH, SOURCE = 16, 2, 24, 20


class Model(nn.Module):
    """Self attention in two blocks, and in a decoder where the mechanism has a form for it."""

    def __init__(self, setting: Setting, slots: dict[Pattern, bool]) -> None:
        super().__init__()

        def layer(pattern: Pattern) -> Attention:
            built = setting if slots[pattern] else EXACT
            return built.build(WIDTH, HEADS, pattern, max_length=LENGTH, max_length_key=SOURCE)

        self.encoder = nn.ModuleList(SelfAttentionBlock(layer(NS), dropout=0.1) for _ in range(2))
        self.decoder = nn.ModuleList(DecoderBlock(layer(CS), layer(CC), dropout=0.1) for _ in range(2))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        for block in self.encoder:
            source = block(source)
        for block in self.decoder:
            x = block(x, source)
        return x


def gradients(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(3)  # of dropout, and of mechanisms that draw
    model.zero_grad(set_to_none=True)
    model(*inputs).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("setting", ATTENTIONS.values(), ids=ATTENTIONS)
def test_gradients_and_states_are_the_same_to_the_bit(setting: Setting) -> None:
    slots = {pattern: pattern in setting.card.supports for pattern in Pattern}
    found = []
    for recomputed in (False, True):
        torch.manual_seed(1)
        model = Model(setting, slots).train()
        if recomputed:
            recompute_activations(model)
        inputs = torch.randn(2, LENGTH, WIDTH), torch.randn(2, SOURCE, WIDTH)
        steps = [gradients(model, *inputs) for _ in range(3)]
        found.append(([tensor for step in steps for tensor in step], model.state_dict()))
    (plain, plain_state), (again, again_state) = found
    assert len(plain) == len(again) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert list(plain_state) == list(again_state)
    for key, value in plain_state.items():
        torch.testing.assert_close(again_state[key], value, rtol=0, atol=0)


def test_a_projection_that_is_drawn_anew_at_every_call_serves_its_own_backward_pass() -> None:
    performer = ATTENTIONS["performer"]
    setting = replace(performer, options={**performer.options, "redraw_interval": 1})
    found = []
    for recomputed in (False, True):
        torch.manual_seed(1)
        model = Model(setting, dict.fromkeys(Pattern, True)).train()
        if recomputed:
            recompute_activations(model)
        inputs = torch.randn(2, LENGTH, WIDTH), torch.randn(2, SOURCE, WIDTH)
        found.append([gradients(model, *inputs) for _ in range(3)])
        calls = {module.training_calls for module in model.modules() if hasattr(module, "training_calls")}
        assert calls == {3}  # and not six
    for plain, again in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_only_one_block_is_held_at_a_time() -> None:
    def peak(depth: int, *, recomputed: bool) -> int:
        model = nn.Sequential(
            *(SelfAttentionBlock(EXACT.build(WIDTH, HEADS, NS, max_length=128)) for _ in range(depth))
        )
        if recomputed:
            recompute_activations(model)
        x = torch.randn(4, 128, WIDTH, requires_grad=True)

        def step() -> None:
            model(x).sum().backward()
            x.grad = None
            model.zero_grad(set_to_none=True)

        step()
        return peak_extra_bytes(step)

    more_plain = peak(8, recomputed=False) - peak(4, recomputed=False)
    more_recomputed = peak(8, recomputed=True) - peak(4, recomputed=True)
    # Of each further block only its input (E floats a token) stays, instead of what its parts keep (over 20 E).
    assert more_recomputed < more_plain / 5


@pytest.mark.parametrize("name", TASKS)
def test_a_task_s_step_is_the_same_to_the_bit(name: str) -> None:
    node = nodes("task")[name]
    target = str(node.pop("_target_"))
    found = []
    for recomputed in (False, True):
        task = make_task(name, target, {**node, "size": "tiny", "pattern": None})
        torch.manual_seed(1)
        model = task.build_model(fill(EXACT, EXACT, task.pattern, seed=1)).train()
        assert blocks_of(model)
        if recomputed:
            recompute_activations(model)
            recompute_activations(model)  # a second time changes nothing
        torch.manual_seed(3)
        loss = Learner(task, model, task.recipe).update([task.blank_batch(2)])
        found.append((loss, model.state_dict()))
    (loss, state), (again_loss, again_state) = found
    assert torch.equal(loss, again_loss)
    assert all(torch.equal(again_state[key], value) for key, value in state.items())
