"""Point cloud completion on boxes: the backbone, its published size, batches, scores and floors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from recording_slots import slots
from torch import nn

from attention_zoo.contract import Pattern
from tasks.pcc import data
from tasks.pcc.model import EdgeConvolution, Fold, GeometryBranch, Layout, PoinTr, edges
from tasks.pcc.points import farthest_points, neighbours
from tasks.pcc.task import SIZES, PointCloudCompletion

SMALL = Layout(
    width=24,
    heads=2,
    hidden=32,
    encoder_blocks=2,
    decoder_blocks=2,
    middle=40,
    proxies=20,
    edge_channels=(4, 8, 8, 8, 12),
    edge_neighbours=6,
    block_neighbours=4,
    position_hidden=8,
    global_width=16,
    queries=30,
    fold=2,
    fold_hidden=8,
)


def box(*size: float) -> np.ndarray:
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * size
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    faces = [corners[list(face)] for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return np.stack(faces).astype(np.float32)


def made_up_meshes(count: int = 30) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"box {index}", box(*rng.uniform(0.2, 1, size=3))) for index in range(count)]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> PointCloudCompletion:
    monkeypatch.setattr(data, "load", made_up_meshes)
    return PointCloudCompletion()


def cloud(rows: int, points: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, points, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The published configuration counted layer by layer (github.com/yuxumin/PoinTr: cfgs/PCN_models/PoinTr.yaml with
# models/PoinTr.py, Transformer.py, dgcnn_group.py; trans_dim 384, num_query 224, num_pred 14336, knn_layer 1). "w" is
# with a bias, "w0" without; norms have two parameters per channel.
#   grouper      w(3,8) + w0(16,32) + w0(64,64) + w0(128,64) + w0(128,128) + norms 2(32+64+64+128)            29,792
#   positions    w(3,128) + norm 128 + w(128,384)                                                              50,304
#   proxies      w(128,384) + norm 384 + w(384,384)                                                           198,144
#   encoder      6 x [attention w0(384,3*384) + w(384,384), MLP w(384,768) + w(768,384), 2 norms]     6 x   1,182,720
#   decoder      8 x [2 attentions, MLP, 4 norms]                                                     8 x   1,774,464
#   geometry     w(768,384) twice, for 1 encoder attention and 2 decoder attentions                   3 x     590,592
#   whole shape  w(384,1024) + norm 1024 + w(1024,1024), in query generator and rebuild head          2 x   1,445,888
#   coarse       w(1024,1024) + w(1024,3*224)                                                               1,738,400
#   queries      w(1027,1024) + w(1024,1024) + w(1024,384)                                                  2,495,872
#   reduction    w(1411,384)                                                                                  542,208
#   folding      [w(384+i,256) + norm 256 + w(256,128) + norm 128 + w(128,3)] for i = 2, 3                    266,502
# The authors' code also makes a geometry branch for the other 19 attentions, which knn_layer 1 never computes with:
# they are not counted here and not built by us.
PUBLISHED = (
    29_792
    + 50_304
    + 198_144
    + 6 * 1_182_720
    + 8 * 1_774_464
    + 3 * 590_592
    + 2 * 1_445_888
    + 1_738_400
    + 2_495_872
    + 542_208
    + 266_502
)
# Ours have a bias in the projections of queries, keys and values, as every mechanism of the zoo; theirs have none.
BIASES = (6 + 2 * 8) * 3 * 384


def test_paper_size_has_the_published_parameters():
    with torch.device("meta"):
        model = PointCloudCompletion(size="paper").build_model(slots())
    assert PUBLISHED == 31_276_806
    assert parameters(model) == PUBLISHED + BIASES


def test_paper_size_has_the_published_points_and_lengths():
    task = PointCloudCompletion(size="paper")
    assert (task.input_points, task.output_points) == (2048, 16_384)
    assert task.lengths == (224, 128)
    assert SIZES["paper"].layout.queries * SIZES["paper"].layout.fold ** 2 == 14_336


def test_cab_s_lengths_can_be_asked_for():
    task = PointCloudCompletion(size="paper", proxies=1536, queries=3584, fold=2)
    assert task.lengths == (3584, 1536)
    assert task.output_points == 16_384
    made = slots()
    with torch.device("meta"):
        task.build_model(made)
    assert set(made[Pattern.NONCAUSAL_CROSS].asked) == {(384, 6, 3584, 1536)}


def test_slots_are_asked_for_their_lengths(task):
    made = slots()
    task.build_model(made)
    width, heads = SIZES["tiny"].layout.width, SIZES["tiny"].layout.heads
    assert made[Pattern.NONCAUSAL_SELF].asked == 2 * [(width, heads, 64, None)] + 2 * [(width, heads, 96, None)]
    assert made[Pattern.NONCAUSAL_CROSS].asked == 2 * [(width, heads, 96, 64)]
    assert not made[Pattern.CAUSAL_SELF].asked
    assert not made[Pattern.CAUSAL_CROSS].asked
    assert task.lengths == (96, 64)
    assert PointCloudCompletion(pattern="noncausal_self").lengths == (96, None)


def test_input_is_part_of_both_completions():
    model = PoinTr(slots(), input_points=50, layout=SMALL).eval()
    points = cloud(2, 50)
    coarse, fine = model(points)
    assert coarse.shape == (2, 30 + 30, 3)
    assert fine.shape == (2, 30 * 4 + 50, 3)
    assert torch.equal(fine[:, 120:], points)
    chosen = farthest_points(points, 30)
    assert torch.equal(coarse[:, 30:], points.gather(1, chosen[:, :, None].expand(-1, -1, 3)))


def test_edge_features_are_those_of_the_definition():
    layer = nn.Linear(10, 7)
    x, source = torch.randn(2, 9, 5), torch.randn(2, 11, 5)
    indices = torch.randint(11, (2, 9, 4))
    found = edges(layer, x, source, indices)
    for b, i, k in itertools.product(range(2), range(9), range(4)):
        neighbour = source[b, indices[b, i, k]]
        torch.testing.assert_close(found[b, i, k], layer(torch.cat((neighbour - x[b, i], x[b, i]))))


def test_edge_convolution_is_that_of_the_definition():
    layer = EdgeConvolution(5, 8, count=3)
    nn.init.normal_(layer.norm.weight)  # of both signs, so that norm and maximum do not commute
    points, source_points, x, source = cloud(2, 6), cloud(2, 12, 1), torch.randn(2, 6, 5), torch.randn(2, 12, 5)
    found = layer(points, x, source_points, source)
    indices = neighbours(points, source_points, 3)
    near = torch.stack([source[b][indices[b]] for b in range(2)])
    own = x[:, :, None].expand_as(near)
    raw = layer.linear(torch.cat((near - own, own), dim=-1)).permute(0, 3, 1, 2)
    expected = nn.functional.leaky_relu(layer.norm(raw), 0.2).max(-1).values.transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_geometry_branch_is_that_of_the_definition():
    branch = GeometryBranch(6)
    attended, x, source = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.randn(2, 9, 6)
    indices = torch.randint(9, (2, 5, 3))
    near = torch.stack([source[b][indices[b]] for b in range(2)])
    own = x[:, :, None].expand_as(near)
    local = nn.functional.leaky_relu(branch.edge(torch.cat((near - own, own), dim=-1)), 0.2).max(2).values
    expected = branch.merge(torch.cat((attended, local), dim=-1))
    torch.testing.assert_close(branch(attended, x, source, indices), expected)


def test_fold_is_a_perceptron_on_grid_point_and_feature():
    fold = Fold(2, 6, 8).eval()
    grid, features = torch.randn(9, 2), torch.randn(4, 6)
    joined = torch.cat((grid.expand(4, 9, 2), features[:, None].expand(4, 9, 6)), dim=-1)
    x = nn.functional.relu(fold.enter_norm(fold.enter(joined)))
    expected = fold.leave(nn.functional.relu(fold.middle_norm(fold.middle(x))))
    torch.testing.assert_close(fold(grid, features), expected)


def test_geometry_is_in_the_first_blocks_only():
    model = PoinTr(slots(), input_points=50, layout=SMALL)
    assert [block.geometry is not None for block in model.encoder] == [True, False]
    assert [block.self_geometry is not None for block in model.decoder] == [True, False]
    assert [block.cross_geometry is not None for block in model.decoder] == [True, False]


def test_every_cloud_is_completed_by_itself():
    model = PoinTr(slots(), input_points=50, layout=SMALL).eval()
    points = cloud(3, 50)
    together = model(points)[1]
    for index in range(3):
        torch.testing.assert_close(model(points[index : index + 1])[1][0], together[index], atol=1e-5, rtol=1e-4)


def test_coordinates_stay_in_float32_under_autocast():
    model = PoinTr(slots(), input_points=50, layout=SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        coarse, fine = model(cloud(2, 50))
    assert coarse.dtype is fine.dtype is torch.float32
    assert (coarse[:, :30] != coarse[:, :30].bfloat16().float()).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_learns(task, dtype):
    model = task.build_model(slots())
    batch = {name: tensor[:2] for name, tensor in next(task.batches("train", 1)).items()}
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        loss = task.loss(model, batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("size", SIZES)
def test_blank_batch_has_the_shapes_of_a_batch_and_needs_no_data(size, monkeypatch):
    monkeypatch.setattr(data, "load", lambda: pytest.fail("data were fetched"))
    task = PointCloudCompletion(size=size)
    batch = task.blank_batch(2)
    assert batch["partial"].shape == (2, task.input_points, 3)
    assert batch["complete"].shape == (2, task.output_points, 3)
    if size == "tiny":
        model = task.build_model(slots())
        loss = task.loss(model, task.blank_batch(1))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_batches_are_a_function_of_seed_and_index(task):
    batches = list(itertools.islice(task.batches("train", seed=1), 3))
    assert equal(next(task.batches("train", seed=1, start=2)), batches[2])
    assert not equal(batches[0], batches[1])
    assert not equal(batches[0], next(task.batches("train", seed=2)))
    held_out = list(task.batches("test", seed=1))
    assert equal(next(task.batches("test", seed=9, start=len(held_out) - 1)), held_out[-1])
    assert sum(len(batch["partial"]) for batch in held_out) == len(task.collection.units("test"))
    assert {name: tensor.shape[1:] for name, tensor in batches[0].items()} == {
        name: tensor.shape[1:] for name, tensor in task.blank_batch().items()
    }


class Oracle(nn.Module):
    """Gives the truth."""

    def __init__(self, task: PointCloudCompletion) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.answers = iter([batch["complete"] for batch in task.batches("test", 0)])

    def forward(self, partial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answer = next(self.answers)
        return answer, answer


def test_truth_scores_best_and_floors_are_on_the_same_units(task):
    scores = task.evaluate(Oracle(task), "test")
    assert [float(scores.values[name].max()) for name in ("cd_l1", "cd_l2")] == [0.0, 0.0]
    assert float(scores.values["f_score"].min()) == 1.0
    assert len(set(scores.units)) == len(scores.units) == len(task.collection.units("test")) // SIZES["tiny"].views
    floors = task.floors("test")
    assert set(floors) == set(task.card.floors)
    assert all(floor.units == scores.units for floor in floors.values())
    assert all(set(floor.values) == {metric.name for metric in task.card.metrics} for floor in floors.values())
    means = {name: floor.values["cd_l1"].mean() for name, floor in floors.items()}
    assert means["mirrored"] < means["partial"]  # boxes are symmetric about their centre


def test_a_unit_is_the_mean_of_its_views(task):
    views = len(task.collection.units("test"))
    per_view = torch.arange(views, dtype=torch.float64)
    scores = task._scores("test", [{"cd_l1": per_view[:7]}, {"cd_l1": per_view[7:]}])
    assert np.array_equal(scores.values["cd_l1"], per_view.numpy().reshape(-1, SIZES["tiny"].views).mean(axis=1))


def test_a_short_training_lowers_the_loss(task):
    model = task.build_model(slots()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = {name: tensor[:4] for name, tensor in next(task.batches("train", 1)).items()}
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "causal_self"}, "pattern of task pcc 'causal_self'.*noncausal_cross"),
        ({"proxies": 257}, "proxies=257.*2 to 256"),
        ({"queries": 1793}, "queries=1793.*2 to 1792"),
        ({"fold": 0}, "fold=0"),
        ({"data": "registy"}, "did you mean 'registry'"),
        ({"data_root": "/tmp"}, "data_root=/tmp is read with data=original only"),
    ],
)
def test_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        PointCloudCompletion(**options)
    assert "\n" not in str(error.value)


def test_numbers_of_points_that_do_not_fit_are_one_line():
    with pytest.raises(ValueError, match="proxies=20, middle=40, input_points=30"):
        PoinTr(slots(), input_points=30, layout=SMALL)


def test_sample_is_a_picture(task):
    (artifact,) = task.samples(task.build_model(slots()).eval())
    assert artifact.media_type == "image/png"
    assert artifact.content.startswith(b"\x89PNG")
