"""What a camera sees of a mesh: a depth image by rasterisation, and its pixels as points in space.

A pinhole camera at distance 3 radii of the bounding sphere looks at the origin; the image just holds the sphere. On the
image plane of a pinhole, inverse depth is linear over a triangle, so a pixel's depth is exact. Both faces of a triangle
are seen, as the meshes' orientation is not reliable. Shape letters: T triangles, N points, P pixels of a side.
"""

from __future__ import annotations

import numpy as np

PIXELS = 128  # of a side
DISTANCE = 1.5  # of the camera from the origin, for a sphere of radius 0.5
MIN_VISIBLE = 32  # pixels that a view must have

_HALF_WIDTH = 0.5 / np.sqrt(DISTANCE**2 - 0.5**2)  # of the image at depth 1: tangent of the sphere's half angle
_TESTS = 1 << 16  # of pixels against triangles, at once


def camera(direction: np.ndarray, roll: float) -> np.ndarray:
    """Rows: right, up and forward axes of a camera that looks against the unit vector ``direction``; [3, 3]."""
    forward = -direction
    helper = np.eye(3)[int(np.argmin(np.abs(forward)))]
    right = np.cross(forward, helper)
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack((cos * right + sin * up, cos * up - sin * right, forward))


def depth_image(corners: np.ndarray, pixels: int = PIXELS) -> np.ndarray:
    """Depth of the nearest triangle at the centre of every pixel, inf where there is none: [P, P].

    Args:
        corners: [T, 3, 3] in the camera's axes (right, up, depth), depth positive.
    """
    inverse = 1.0 / corners[..., 2]
    # In pixels: the centre of pixel (row, column) is at (column, row).
    plane = (corners[..., :2] * inverse[..., None] / _HALF_WIDTH + 1) * (pixels / 2) - 0.5
    low = np.ceil(plane.min(axis=1)).clip(0).astype(np.int64)
    high = np.floor(plane.max(axis=1)).clip(max=pixels - 1).astype(np.int64)
    weights, area = _barycentric(plane)
    extent = (high - low + 1).max(axis=1)
    filled = (high >= low).all(axis=1) & (area != 0)  # a triangle seen along its plane covers no pixel
    nearest = np.zeros(pixels * pixels)  # largest inverse depth
    side = 1
    while side < 2 * pixels:  # triangles by the size of their box, so that those of a step share one grid
        rows = np.flatnonzero(filled & (extent <= side) & (2 * extent > side))
        step = max(1, _TESTS // side**2)
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            _draw(nearest, weights[chosen], inverse[chosen], low[chosen], side, pixels)
        side *= 2
    with np.errstate(divide="ignore"):
        return (1.0 / nearest).reshape(pixels, pixels)


def _barycentric(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of corners 1 and 2 as ``w[0] + w[1] x + w[2] y``, [T, 2, 3], and twice the signed area, [T]."""
    (ax, ay), (bx, by), (cx, cy) = (plane[:, corner].T for corner in range(3))
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    of_b = np.stack((cx * ay - ax * cy, cy - ay, ax - cx), axis=1)
    of_c = np.stack((ax * by - bx * ay, ay - by, bx - ax), axis=1)
    safe = np.where(area == 0, 1.0, area)[:, None]
    return np.stack((of_b / safe, of_c / safe), axis=1), area


def _draw(
    nearest: np.ndarray, weights: np.ndarray, inverse: np.ndarray, low: np.ndarray, side: int, pixels: int
) -> None:
    """Raises ``nearest`` to the inverse depth of the triangles at the pixels of boxes of ``side`` from ``low`` on."""
    column, row = (low[:, axis, None] + np.arange(side) for axis in range(2))
    b, c = (
        (weights[:, corner, :1] + weights[:, corner, 1:2] * column)[:, None, :]
        + (weights[:, corner, 2:] * row)[:, :, None]
        for corner in range(2)
    )
    inside = (b >= 0) & (c >= 0) & (b + c <= 1) & (column < pixels)[:, None, :] & (row < pixels)[:, :, None]
    triangle, i, j = np.nonzero(inside)
    own = inverse[triangle]
    b, c = b[inside], c[inside]
    depth = (1 - b - c) * own[:, 0] + b * own[:, 1] + c * own[:, 2]
    np.maximum.at(nearest, row[triangle, i] * pixels + column[triangle, j], depth)


def visible_points(triangles: np.ndarray, direction: np.ndarray, roll: float, pixels: int = PIXELS) -> np.ndarray:
    """Points of the mesh at the centres of the pixels that it fills, [N, 3] float32; none where it fills none.

    Args:
        triangles: [T, 3, 3], inside the sphere of radius 0.5 about the origin.
        direction: unit vector from the origin to the camera.
        roll: of the camera about its axis, in radians.
    """
    axes = camera(direction, roll)
    corners = triangles.astype(np.float64) @ axes.T
    corners[..., 2] += DISTANCE
    depth = depth_image(corners, pixels)
    row, column = np.nonzero(np.isfinite(depth))
    found = depth[row, column][:, None]
    plane = (np.stack((column, row), axis=1) + 0.5) / (pixels / 2) - 1
    seen = np.concatenate((plane * _HALF_WIDTH * found, found - DISTANCE), axis=1)
    return (seen @ axes).astype(np.float32)
