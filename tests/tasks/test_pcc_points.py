"""Farthest-point sampling, neighbours, and the metrics, against plain loops and scipy's k-d tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from tasks.pcc import metrics
from tasks.pcc.points import farthest_points, gather, nearest, nearest_distance, neighbours


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def naive_farthest(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        distance = [min(np.linalg.norm(point - points[index]) for index in chosen) for point in points]
        chosen.append(int(np.argmax(distance)))
    return chosen


def test_farthest_points_are_those_of_the_definition():
    points = cloud(3, 40)
    found = farthest_points(points, 12)
    assert found.tolist() == [naive_farthest(one.numpy(), 12) for one in points]


def test_farthest_points_are_nested_which_the_backbone_relies_on():
    points = cloud(2, 60)
    of_all = farthest_points(points, 30)
    assert torch.equal(farthest_points(points, 10), of_all[:, :10])
    assert torch.equal(farthest_points(gather(points, of_all), 10), torch.arange(10).expand(2, 10))


def test_more_farthest_points_than_points_is_an_error():
    with pytest.raises(ValueError, match="9 farthest points of a cloud of 8"):
        farthest_points(cloud(1, 8), 9)


@pytest.mark.parametrize("chunk", [1, 150, 1 << 20])
def test_neighbours_do_not_depend_on_the_chunk_and_are_those_of_sorting(chunk):
    points, source = cloud(2, 33), cloud(2, 47, seed=1)
    found = neighbours(points, source, 5, chunk=chunk)
    sorted_all = (points[:, :, None] - source[:, None]).square().sum(-1).argsort(-1)
    assert torch.equal(found.sort(-1).values, sorted_all[:, :, :5].sort(-1).values)
    assert torch.equal(nearest(points, source, chunk=chunk), sorted_all[:, :, 0])


def test_gathered_rows_are_those_of_their_index_and_their_gradient_does_not_depend_on_threads():
    torch.set_num_threads(4)
    values, indices = torch.randn(1, 64, 64, requires_grad=True), torch.randint(0, 64, (1, 4096, 8))
    weights = torch.randn(1, 4096, 8, 64)
    assert torch.equal(gather(values, indices)[0], values[0][indices[0]])
    found = [torch.autograd.grad((gather(values, indices) * weights).sum(), values)[0] for _ in range(10)]
    assert all(torch.equal(each, found[0]) for each in found)


def test_fewer_neighbours_where_the_source_has_fewer():
    assert neighbours(cloud(1, 4), cloud(1, 3), 8).shape == (1, 4, 3)


def test_distance_has_the_gradient_of_its_definition_and_none_where_it_is_zero():
    points, source = cloud(1, 6).requires_grad_(), cloud(1, 5, seed=1)
    source[0, 0] = points.detach()[0, 0]
    source.requires_grad_()
    nearest_distance(points, source).sum().backward()
    of_points, of_source = points.grad.clone(), source.grad.clone()
    assert of_points[0, 0].abs().sum() == 0
    points.grad = source.grad = None
    # The first point lies on a source point, where the norm has no gradient: it is left out of the reference.
    difference = points[:, 1:, None] - source[:, None]
    difference.square().sum(-1).min(-1).values.sqrt().sum().backward()
    torch.testing.assert_close(of_points, points.grad)
    torch.testing.assert_close(of_source, source.grad)


def test_float32_search_errs_by_no_more_than_it_says():
    points, source = (cloud(1, 2000, seed=seed).float() for seed in (0, 1))
    found = nearest_distance(points, source).double().square()
    truth = torch.from_numpy(cKDTree(source[0].double()).query(points[0].double())[0]).square()
    assert (found - truth).abs().max() < 1e-6  # ten times the bound in the module's docstring


def by_tree(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The metrics of the PCN and PoinTr papers, by another library."""
    d, e = cKDTree(truth).query(predicted)[0], cKDTree(predicted).query(truth)[0]
    precision, recall = (d < 0.01).mean(), (e < 0.01).mean()
    return {
        "cd_l1": 1000 * (d.mean() + e.mean()) / 2,
        "cd_l2": 1000 * ((d**2).mean() + (e**2).mean()),
        "f_score": 2 * precision * recall / (precision + recall),
    }


def test_metrics_equal_those_of_a_k_d_tree():
    truth = cloud(3, 700)
    predicted = truth[:, :500] + 0.02 * cloud(3, 500, seed=2)
    found = metrics.scores(predicted.float(), truth.float())
    for index in range(3):
        expected = by_tree(*(points[index].float().double().numpy() for points in (predicted, truth)))
        assert 0.1 < expected["f_score"] < 0.9
        assert {name: float(values[index]) for name, values in found.items()} == pytest.approx(expected, rel=1e-9)


def test_metrics_of_known_clouds():
    truth = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    perfect = metrics.scores(truth, truth)
    assert [float(perfect[name]) for name in ("cd_l1", "cd_l2", "f_score")] == [0.0, 0.0, 1.0]
    moved = metrics.scores(truth + torch.tensor([0.0, 0.02, 0.0]), truth)
    assert float(moved["cd_l1"]) == pytest.approx(20.0, rel=1e-6)  # float32 coordinates
    assert float(moved["cd_l2"]) == pytest.approx(0.8, rel=1e-6)
    assert float(moved["f_score"]) == 0.0
    half = metrics.scores(truth[:, :1], truth)  # precision 1, recall 1/2
    assert float(half["f_score"]) == pytest.approx(2 / 3)
    assert float(half["cd_l1"]) == pytest.approx(250.0)
