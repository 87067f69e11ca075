"""Decoding: steps against recomputation for a GPT of stepped blocks, unequal prompts, limits, sampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attention_zoo import build
from attention_zoo.contract import Pattern, Unsupported
from tasks.decoding import (
    Limits,
    Sampler,
    SteppedBlock,
    SteppedDecoderBlock,
    at_position,
    continue_prompts,
    greedy,
    steps_everywhere,
)
from tasks.layers import DecoderBlock, LearnedPositions, SelfAttentionBlock, SinusoidalPositions

VOCABULARY, LENGTH, WIDTH = 13, 24, 16
CS, CC = Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS


class Gpt(nn.Module):
    """The smallest decoder that the search can use: what the language-modelling task has to offer it."""

    def __init__(self, attention: str = "softmax", *, norm_first: bool = True, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = LearnedPositions(LENGTH, WIDTH, std=1.0)
        self.blocks = nn.ModuleList(
            SteppedBlock(build(attention, WIDTH, 2, CS, max_length=LENGTH), norm_first=norm_first)
            for _ in range(layers)
        )
        self.output = nn.Linear(WIDTH, VOCABULARY)
        self.double().eval()  # so that rounding decides no choice

    @property
    def incremental(self) -> bool:
        return steps_everywhere(self.blocks)

    def last_logits(self, tokens):
        x = self.positions(self.embedding(tokens))
        for block in self.blocks:
            x = block(x)
        return self.output(x[:, -1])

    def prefill(self, tokens):
        x, states = self.positions(self.embedding(tokens)), []
        for block in self.blocks:
            x, state = block.prefill(x)
            states.append(state)
        return self.output(x[:, -1]), states

    def step(self, tokens, index, states):
        x, after = at_position(self.positions, self.embedding(tokens[:, None]), index), []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block.step(x, state)
            after.append(state)
        return self.output(x[:, -1]), after


class Script:
    """A decoder whose next token is a function of the last one: t to t + 1. The second best is t + 2."""

    incremental = False

    def last_logits(self, tokens):
        following = nn.functional.one_hot((tokens[:, -1] + 1) % VOCABULARY, VOCABULARY)
        second = nn.functional.one_hot((tokens[:, -1] + 2) % VOCABULARY, VOCABULARY)
        return 2.0 * following + second


def prompts(rows: int = 5, length: int = 6) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def by_hand(decoder, prompt: list[int], most: int) -> list[int]:
    """Greedy search over one prompt, as the definition says it."""
    tokens = list(prompt)
    for _ in range(most):
        tokens.append(int(decoder.last_logits(torch.tensor([tokens])).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("attention", ["softmax", "sdpa", "linear", "s4d", "abc"])
def test_steps_and_recomputation_give_the_tokens_of_the_definition(attention, norm_first):
    decoder, asked = Gpt(attention, norm_first=norm_first), prompts()
    limits = Limits(most=12)
    assert decoder.incremental
    in_steps = continue_prompts(decoder, asked, limits, incremental=True)
    assert torch.equal(in_steps, continue_prompts(decoder, asked, limits, incremental=False))
    assert in_steps.tolist() == [by_hand(decoder, row, 12) for row in asked.tolist()]
    assert len({tuple(row) for row in in_steps.tolist()}) > 1  # else the prompts would not matter
    assert torch.equal(in_steps, continue_prompts(decoder, asked, limits))


def test_without_incremental_form_the_prefix_is_recomputed():
    decoder = Gpt("reformer")
    assert not decoder.incremental
    found = continue_prompts(decoder, prompts(2), Limits(most=4))
    assert found.tolist() == [by_hand(decoder, row, 4) for row in prompts(2).tolist()]
    with pytest.raises(Unsupported, match="no incremental form"):
        continue_prompts(decoder, prompts(2), Limits(most=4), incremental=True)


def test_step_logits_equal_the_forward_s():
    decoder, tokens = Gpt(), prompts(3, 10)
    logits, states = decoder.prefill(tokens[:, :4])
    torch.testing.assert_close(logits, decoder.last_logits(tokens[:, :4]), atol=1e-12, rtol=0)  # float64
    for index in range(4, 10):
        logits, states = decoder.step(tokens[:, index], index, states)
        torch.testing.assert_close(logits, decoder.last_logits(tokens[:, : index + 1]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("incremental", [True, False])
def test_unequal_prompts_continue_as_they_would_alone(incremental):
    decoder, asked = Gpt(), prompts(4, 6)
    lengths = torch.tensor([2, 6, 1, 4])
    filled = asked.masked_fill(torch.arange(6) >= lengths[:, None], 0)
    found = continue_prompts(decoder, filled, Limits(most=7), prompt_lengths=lengths, incremental=incremental)
    alone = [by_hand(decoder, row[:length], 7) for row, length in zip(asked.tolist(), lengths.tolist(), strict=True)]
    assert found.tolist() == alone


def test_rows_end_at_their_stop_and_are_padded():
    found = continue_prompts(Script(), torch.tensor([[3], [1], [9]]), Limits(most=5, stop=5, pad=0))
    assert found.tolist() == [[4, 5, 0, 0, 0], [2, 3, 4, 5, 0], [10, 11, 12, 0, 1]]


def test_least_length_puts_the_stop_off_and_forbidden_tokens_never_come():
    found = continue_prompts(Script(), torch.tensor([[3], [4]]), Limits(most=4, least=2, stop=5, forbidden=(7,)))
    # 3 -> 4 -> (5 too early) 6 -> (7 forbidden) 8; and 4 -> (5 too early) 6 -> (7 forbidden) 8 -> 9 -> 10
    assert found.tolist() == [[4, 6, 8, 9], [6, 8, 9, 10]]
    unequal = Limits(most=3, least=1, stop=5)
    found = continue_prompts(Script(), torch.tensor([[4, 4], [4, 0]]), unequal, prompt_lengths=torch.tensor([2, 1]))
    assert found.tolist() == [[6, 7, 8], [6, 7, 8]]  # the least length counts from the end of each row's own prompt


@pytest.mark.parametrize("limits", [{"most": 0}, {"most": 3, "least": 4}, {"most": 3, "least": -1}])
def test_impossible_limits_are_one_line(limits):
    with pytest.raises(ValueError, match="continuation of at least"):
        Limits(**limits)


@pytest.mark.parametrize("lengths", [[0, 2], [1, 3]])
def test_wrong_prompt_lengths_are_one_line(lengths):
    with pytest.raises(ValueError, match="lengths from 1 to 2"):
        continue_prompts(Script(), prompts(2, 2), Limits(most=3), prompt_lengths=torch.tensor(lengths))


def test_sampler_draws_the_softmax_and_repeats_with_its_seed():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(20_000, -1)
    sample = Sampler(torch.Generator().manual_seed(0), temperature=0.5)
    counts = torch.bincount(sample(logits), minlength=4).double() / 20_000
    # Four standard deviations of a share over 20,000 draws are at most 4 * 0.5 / sqrt(20,000).
    torch.testing.assert_close(counts, (2 * logits[0]).softmax(-1).double(), atol=0.0142, rtol=0)
    again = Sampler(torch.Generator().manual_seed(0), temperature=0.5)
    fresh = Sampler(torch.Generator().manual_seed(0), temperature=0.5)
    assert torch.equal(again(logits), fresh(logits))
    assert not torch.equal(again(logits), fresh(logits + torch.tensor([3.0, 0, 0, 0])))


def test_sampler_keeps_the_top_and_becomes_greedy():
    logits = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    two = Sampler(torch.Generator().manual_seed(1), top=2)(logits)
    best = logits.topk(2, dim=-1).indices
    assert (two[:, None] == best).any(-1).all()
    assert (two != best[:, 0]).any()
    for sampler in (Sampler(torch.Generator(), top=1), Sampler(torch.Generator(), temperature=1e-6)):
        assert torch.equal(sampler(logits), greedy(logits))
    with pytest.raises(ValueError, match="above 0"):
        Sampler(torch.Generator(), temperature=0.0)


def test_sampled_continuations_are_equal_in_steps_and_recomputed():
    drawn = [
        continue_prompts(
            Gpt(),
            prompts(),
            Limits(most=8),
            choose=Sampler(torch.Generator().manual_seed(3)),
            incremental=incremental,
        )
        for incremental in (True, False)
    ]
    assert torch.equal(*drawn)


def test_stepped_blocks_have_the_values_of_the_shared_ones():
    def self_attention():
        return build("softmax", WIDTH, 2, CS, max_length=8)

    def cross_attention():
        return build("softmax", WIDTH, 2, CC, max_length=8)

    x, source = torch.randn(2, 8, WIDTH), torch.randn(2, 5, WIDTH)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    torch.manual_seed(4)
    shared: nn.Module = SelfAttentionBlock(self_attention(), 20)
    torch.manual_seed(4)
    assert torch.equal(SteppedBlock(self_attention(), 20)(x), shared(x))
    torch.manual_seed(4)
    shared = DecoderBlock(self_attention(), cross_attention(), 20)
    torch.manual_seed(4)
    stepped = SteppedDecoderBlock(self_attention(), cross_attention(), 20)
    masks = {"source_key_padding_mask": padding}
    assert torch.equal(stepped(x, source, **masks), shared(x, source, **masks))


def test_post_norm_normalises_what_it_returns():
    block = SteppedBlock(build("softmax", WIDTH, 2, CS, max_length=8), norm_first=False)
    out = block(5 * torch.randn(2, 8, WIDTH) + 3)
    # LayerNorm starts with scale 1 and shift 0; float32, and its epsilon of 1e-5 on a variance of order 1.
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, correction=0), torch.ones(2, 8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", [LearnedPositions(6, WIDTH, std=1.0), SinusoidalPositions(6, WIDTH)])
def test_one_position_alone(positions):
    x = torch.randn(2, 6, WIDTH)
    for index in range(6):
        assert torch.equal(at_position(positions, x[:, index : index + 1], index)[:, 0], positions(x)[:, index])
    with pytest.raises(ValueError, match="position 6 is not among the model's 6"):
        at_position(positions, x[:, :1], 6)
