"""The backbone: counts of parameters, blocks against PyTorch's own, distilling, and what may see what."""

from __future__ import annotations

import pytest
import torch
from recording_slots import slots
from torch import nn

from attention_zoo.contract import Attention, Pattern
from tasks.contract import Slots
from tasks.lstf import task as tasks
from tasks.lstf.model import DecoderLayer, Distilling, EncoderLayer, Informer, SeriesEmbedding

NS, CS, NC, _ = Pattern


def small_model(filled: Slots, label_length: int = 8, input_length: int = 24) -> Informer:
    return Informer(
        filled,
        channels=3,
        calendar_features=4,
        input_length=input_length,
        label_length=label_length,
        horizon=12,
        width=16,
        heads=2,
        hidden=32,
        encoder_layers=3,
        decoder_layers=2,
        distil=True,
        dropout=0.0,
    )


def published_count(channels: int, calendar: int, encoder_layers: int, decoder_layers: int) -> int:
    """The parameters of Informer with E = 512 and a feed-forward width of 2048, layer by layer.

    From the published configuration (arXiv:2012.07436, appendices B and D, and the defaults of the released code,
    github.com/zhouhaoyi/Informer2020 at 29f2a73); the paper prints no count. The released code, built once at these
    settings to compare, counts the same: 11,330,055 for ETTh1 (M), 20,600,129 for ECL (M), 19,492,364 for Weather (M).
    """
    width, hidden = 512, 2048
    # Values: a convolution of 3 steps with a bias; time stamps: a linear layer. Positions are fixed.
    embedding = (3 * channels * width + width) + (calendar * width + width)
    attention = 4 * (width * width + width)
    feed_forward = (width * hidden + hidden) + (hidden * width + width)
    norm = 2 * width
    encoder = encoder_layers * (attention + feed_forward + 2 * norm) + norm
    # A convolution of 3 steps and a batch normalisation between each two encoder layers.
    distilling = (encoder_layers - 1) * (3 * width * width + width + norm)
    decoder = decoder_layers * (2 * attention + feed_forward + 3 * norm) + norm
    return 2 * embedding + encoder + distilling + decoder + (width * channels + channels)


@pytest.mark.parametrize(
    ("kind", "features", "shape", "reference"),
    [
        (tasks.ETTh1Forecasting, "multivariate", (7, 4, 2, 1), 11_330_055),
        (tasks.ETTh1Forecasting, "univariate", (1, 4, 2, 1), 11_308_545),
        (tasks.ETTh2Forecasting, "multivariate", (7, 4, 2, 1), 11_330_055),
        (tasks.ETTm1Forecasting, "multivariate", (7, 5, 2, 1), 11_331_079),  # with the minute, as with --freq t
        (tasks.ECLForecasting, "multivariate", (321, 4, 3, 2), 20_600_129),
        (tasks.ECLForecasting, "univariate", (1, 4, 3, 2), 19_452_929),
        (tasks.WeatherForecasting, "multivariate", (12, 4, 3, 2), 19_492_364),
    ],
)
def test_paper_size_has_the_published_number_of_parameters(kind, features, shape, reference):
    task = kind(size="paper", data="original", features=features)
    with torch.device("meta"):
        model = task.build_model(slots())
    assert sum(parameter.numel() for parameter in model.parameters()) == reference == published_count(*shape)


@pytest.mark.parametrize("kind", [tasks.ETTh1Forecasting, tasks.ECLForecasting, tasks.WeatherForecasting])
def test_one_step_at_paper_size_on_the_meta_device(kind):
    task = kind(size="paper")
    with torch.device("meta"):
        model = task.build_model(slots())
    task.loss(model, task.blank_batch(1)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    own = ours.state_dict()
    projections = ("query", "key", "value")
    assert theirs.in_proj_weight is not None
    theirs.in_proj_weight.data = torch.cat([own[f"{name}_projection.weight"] for name in projections])
    theirs.in_proj_bias.data = torch.cat([own[f"{name}_projection.bias"] for name in projections])
    theirs.out_proj.weight.data = own["output_projection.weight"]
    theirs.out_proj.bias.data = own["output_projection.bias"]


def randomise(module: nn.Module) -> None:
    """Also what starts at zero or one, so that an exchange of two parameters shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def test_encoder_layer_is_the_post_norm_layer_of_pytorch():
    ours = EncoderLayer(slots()[NS](16, 2, max_length=9), 32, dropout=0.0)
    randomise(ours)
    theirs = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=False)
    copy_attention(ours.attention, theirs.self_attn)
    for own, other in (
        (ours.attention_norm, theirs.norm1),
        (ours.feed_forward_norm, theirs.norm2),
        (ours.feed_forward.expand, theirs.linear1),
        (ours.feed_forward.contract, theirs.linear2),
    ):
        other.load_state_dict(own.state_dict())
    x = torch.randn(3, 9, 16)
    # Both are float32 with sums of at most 32 terms of unit scale.
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_decoder_layer_is_the_post_norm_layer_of_pytorch():
    filled = slots()
    ours = DecoderLayer(filled[CS](16, 2, max_length=9), filled[NC](16, 2, max_length=9, max_length_key=5), 32, 0.0)
    randomise(ours)
    theirs = nn.TransformerDecoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=False)
    copy_attention(ours.self_attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    for own, other in (
        (ours.self_attention_norm, theirs.norm1),
        (ours.cross_attention_norm, theirs.norm2),
        (ours.feed_forward_norm, theirs.norm3),
        (ours.feed_forward.expand, theirs.linear1),
        (ours.feed_forward.contract, theirs.linear2),
    ):
        other.load_state_dict(own.state_dict())
    x, source = torch.randn(3, 9, 16), torch.randn(3, 5, 16)
    expected = theirs(x, source, tgt_mask=nn.Transformer.generate_square_subsequent_mask(9), tgt_is_causal=True)
    torch.testing.assert_close(ours(x, source), expected, atol=1e-5, rtol=1e-5)  # as above


def test_embedding_wraps_around_and_adds_calendar_and_position():
    embedding = SeriesEmbedding(channels=2, calendar_features=4, width=8, max_length=10, dropout=0.0)
    x, calendar = torch.randn(1, 6, 2), torch.randn(1, 6, 4)
    weight, bias = embedding.values.weight, embedding.values.bias
    assert bias is not None
    for step in range(6):
        neighbours = torch.stack([x[0, (step + offset) % 6] for offset in (-1, 0, 1)], dim=1)  # [C, 3]
        expected = (weight * neighbours).sum(dim=(1, 2)) + bias
        expected = expected + embedding.calendar(calendar[0, step]) + embedding.positions.table[step]
        # Sums of ten float32 terms of unit scale.
        torch.testing.assert_close(embedding(x, calendar)[0, step], expected, atol=1e-5, rtol=1e-5)


def test_distilling_is_convolution_normalisation_elu_and_pooling():
    layer = Distilling(4).eval()
    randomise(layer)
    layer.norm.running_mean = torch.randn(4)
    layer.norm.running_var = torch.rand(4) + 0.5
    x = torch.randn(2, 7, 4)
    rows = []
    for step in range(7):
        neighbours = torch.stack([x[:, (step + offset) % 7] for offset in (-1, 0, 1)], dim=2)  # [B, E, 3]
        rows.append(torch.einsum("bek,oek->bo", neighbours, layer.convolution.weight) + layer.convolution.bias)
    scaled = (torch.stack(rows, dim=1) - layer.norm.running_mean) / (layer.norm.running_var + layer.norm.eps).sqrt()
    activated = nn.functional.elu(scaled * layer.norm.weight + layer.norm.bias)
    pooled = [activated[:, max(0, 2 * step - 1) : 2 * step + 2].amax(dim=1) for step in range(4)]
    # Sums of twelve float32 terms of unit scale.
    torch.testing.assert_close(layer(x), torch.stack(pooled, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [24, 25, 96])
def test_distilling_halves_between_encoder_layers(length):
    asked = slots()
    model = small_model(asked, input_length=length)
    half = (length + 1) // 2
    assert asked[NS].lengths == [(length, None), (half, None), ((half + 1) // 2, None)]
    assert asked[NC].lengths == [(20, (half + 1) // 2)] * 2
    assert asked[CS].lengths == [(20, None)] * 2
    assert model(torch.randn(2, length, 3), torch.randn(2, length, 4), torch.randn(2, 20, 4)).shape == (2, 12, 3)


def assert_forecast_is_causal_in_the_target(filled: Slots, label_length: int = 8) -> None:
    """What is known of later target steps leaves earlier forecasts unchanged, with any attention in the CS slot.

    The values of the horizon are placeholders for model and test alike; the calendar is what the later steps have of
    their own. The slots of NC must treat each query by itself, as exact attention does.
    """
    torch.manual_seed(0)
    model = small_model(filled, label_length).eval()
    inputs, calendar = torch.randn(2, 24, 3), torch.randn(2, 24, 4)
    target = torch.randn(2, label_length + 12, 4)
    before = model(inputs, calendar, target)
    for step in (1, 6, 11):
        changed = target.clone()
        changed[:, label_length + step :] += 1.0
        after = model(inputs, calendar, changed)
        # Masked weights are exact zeros; what is left are float32 roundings of sums in another order.
        torch.testing.assert_close(after[:, :step], before[:, :step], atol=1e-5, rtol=1e-5)
        assert (after[:, step:] - before[:, step:]).abs().amax() > 1e-3


@pytest.mark.parametrize("label_length", [0, 8])
def test_forecast_is_causal_in_the_target(label_length):
    assert_forecast_is_causal_in_the_target(slots(), label_length)


@pytest.mark.parametrize("early", [0, 11, 23])
def test_forecast_depends_on_the_whole_input(early):
    model = small_model(slots(), label_length=0).eval()
    inputs, calendar, target = torch.randn(2, 24, 3), torch.randn(2, 24, 4), torch.randn(2, 12, 4)
    before = model(inputs, calendar, target)
    inputs[:, early] += 1.0
    assert (before != model(inputs, calendar, target)).flatten(1).any(dim=1).all()


def test_bf16_autocast_gives_a_finite_gradient_to_every_parameter():
    model = small_model(slots())
    with torch.autocast("cpu", torch.bfloat16):
        forecast = model(torch.randn(4, 24, 3), torch.randn(4, 24, 4), torch.randn(4, 20, 4))
    forecast.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
