"""PoinTr (Yu et al., ICCV 2021, arXiv:2108.08839): completes a point cloud as a translation from set to set.

    partial cloud -> point proxies (centres with local features)          section 3.1
                  -> encoder over the proxies                             NS    section 3.2
                  -> query generator: coarse points and their features    section 3.3
                  -> decoder over the queries, attending to the proxies   NS, NC
                  -> a patch of points per query, folded from a grid      section 3.4

What attends is whatever fills the slots. In the first block(s) of encoder and decoder a geometry branch over nearest
neighbours stands beside each attention (section 3.2, figure 3). Where the paper leaves a size open, it is that of the
authors' configuration for PCN (github.com/yuxumin/PoinTr, cfgs/PCN_models/PoinTr.yaml), and so is that positions are
added before every encoder block. "Convolutions of width 1" are linear layers here, over channels that come last.

Shape letters: B clouds, N input points, S proxies, Q queries, E width, C channels, K neighbours. Coordinates stay in
the parameters' precision under autocast: bfloat16 resolves half a per cent of a shape's size, less than the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from attention_zoo.contract import Attention, Pattern
from tasks.contract import Slots
from tasks.layers import FeedForward
from tasks.pcc.points import farthest_points, gather, neighbours

SLOPE = 0.2  # of leaky ReLU, everywhere
GROUPS = 4  # of group normalisation in the proxies' local features
SPREAD = 0.2  # standard deviation of a coordinate of the first coarse points, for shapes of diameter 1


@dataclass(frozen=True)
class Layout:
    """The backbone's sizes; the defaults are the published configuration for PCN (31.3 M parameters).

    Attributes:
        width, heads, hidden: E, attention heads, inner width of the feed-forward layers.
        encoder_blocks, decoder_blocks, geometry_blocks: numbers; the last one counts the first blocks of each.
        middle, proxies: points kept after the first and the second pair of edge convolutions; proxies <= middle.
        edge_channels: of the points' lift from coordinates and of the four edge convolutions after it.
        edge_neighbours, block_neighbours: K in the edge convolutions and in the geometry branches.
        position_hidden: inner width of the positions' embedding.
        global_width: of the feature of the whole shape.
        queries, fold: Q and the side of the grid that is folded for each: Q fold^2 points.
        fold_hidden: inner width of the folding.
    """

    width: int = 384
    heads: int = 6
    hidden: int = 768
    encoder_blocks: int = 6
    decoder_blocks: int = 8
    geometry_blocks: int = 1
    middle: int = 512
    proxies: int = 128
    edge_channels: tuple[int, int, int, int, int] = (8, 32, 64, 64, 128)
    edge_neighbours: int = 16
    block_neighbours: int = 8
    position_hidden: int = 128
    global_width: int = 1024
    queries: int = 224
    fold: int = 8
    fold_hidden: int = 256


class Linear(nn.Linear):
    """A linear layer whose weights start from N(0, std^2) cut at two standard deviations, and whose bias from zero."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, std: float = 0.02) -> None:
        super().__init__(inputs, outputs, bias)
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        if bias:
            nn.init.zeros_(self.bias)


class Pointwise(nn.Linear):
    """A linear layer on every point alike, of Xavier-normal weights: a convolution of width 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        nn.init.xavier_normal_(self.weight)


class Coordinates(Linear):
    """The last layer to coordinates: in its own precision, also under autocast."""

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B outputs"]:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class PointNorm(nn.BatchNorm1d):
    """Batch normalisation of channels that come last, over everything else."""

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch normalisation, leaky ReLU, linear: on every point alike."""
    return nn.Sequential(Pointwise(inputs, hidden), PointNorm(hidden), nn.LeakyReLU(SLOPE), Pointwise(hidden, outputs))


def edges(
    layer: nn.Linear,
    x: Float[Tensor, "B N C"],
    source: Float[Tensor, "B M C"],
    indices: Int[Tensor, "B N K"],
) -> Float[Tensor, "B N K D"]:
    """``W [y_j - x_i ; x_i] + b`` over the edges from i to its neighbours j (Wang et al., DGCNN, equation 8).

    Computed as ``W_1 y_j + (W_2 - W_1) x_i + b``: K times fewer products.
    """
    neighbour, own = layer.weight.chunk(2, dim=1)
    return gather(F.linear(source, neighbour), indices) + F.linear(x, own - neighbour, layer.bias)[:, :, None]


class EdgeConvolution(nn.Module):
    """``max_j leaky(GroupNorm(W [y_j - x_i ; x_i]))`` over the K nearest neighbours j of i (section 3.1)."""

    def __init__(self, channels: int, outputs: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(2 * channels, outputs, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(
        self,
        points: Float[Tensor, "B N 3"],
        x: Float[Tensor, "B N C"],
        source_points: Float[Tensor, "B M 3"],
        source: Float[Tensor, "B M C"],
    ) -> Float[Tensor, "B N D"]:
        features = edges(self.linear, x, source, neighbours(points, source_points, self.count))
        return F.leaky_relu(self.norm(features.movedim(-1, 1)), SLOPE).amax(-1).transpose(1, 2)


class Grouper(nn.Module):
    """Point proxies: centres by farthest-point sampling and their local features by edge convolutions (section 3.1).

    All points, then ``middle`` of them, then ``proxies`` of those; as farthest points are nested, one search serves.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.middle, self.proxies = layout.middle, layout.proxies
        lift, *channels = layout.edge_channels
        self.lift = nn.Linear(3, lift)
        self.first, self.second, self.third, self.fourth = (
            EdgeConvolution(before, after, layout.edge_neighbours)
            for before, after in zip((lift, *channels), channels, strict=False)
        )

    def forward(
        self, points: Float[Tensor, "B N 3"], farthest: Int[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B S 3"], Float[Tensor, "B S C"]]:
        """Centres and features. ``farthest`` are at least ``middle`` indices in the order of the sampling."""
        x = self.lift(points)
        x = self.first(points, x, points, x)
        kept = farthest[:, : self.middle]
        middle = gather(points, kept)
        x = self.second(middle, gather(x, kept), points, x)
        x = self.third(middle, x, middle, x)
        centres = middle[:, : self.proxies]
        return centres, self.fourth(centres, x[:, : self.proxies], middle, x)


class GeometryBranch(nn.Module):
    """``W' [a_i ; max_j leaky(W [y_j - x_i ; x_i] + b)] + b'``: attention merged with geometry (section 3.2, figure 3).

    a is the attention's output, x its queries and y its keys (normalised); j runs over the neighbours of i in space.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = Linear(2 * width, width)
        self.merge = Linear(2 * width, width)

    def forward(
        self,
        attended: Float[Tensor, "B N E"],
        x: Float[Tensor, "B N E"],
        source: Float[Tensor, "B M E"],
        indices: Int[Tensor, "B N K"],
    ) -> Float[Tensor, "B N E"]:
        # Leaky ReLU rises, so that the maximum may come first: K times less to keep for the gradient.
        near = F.leaky_relu(edges(self.edge, x, source, indices).amax(2), SLOPE)
        return self.merge(torch.cat((attended, near.to(attended.dtype)), dim=-1))


class EncoderBlock(nn.Module):
    """Self attention over the proxies, with a geometry branch or without, and a feed-forward layer; pre-norm."""

    def __init__(self, attention: Attention, hidden: int, *, geometry: bool) -> None:
        super().__init__()
        width = attention.embed_dim
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.geometry = GeometryBranch(width) if geometry else None
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, x: Float[Tensor, "B S E"], indices: Int[Tensor, "B S K"]) -> Float[Tensor, "B S E"]:
        normed = self.attention_norm(x)
        attended = self.attention(normed)
        x = x + (attended if self.geometry is None else self.geometry(attended, normed, normed, indices))
        return x + self.feed_forward(self.feed_forward_norm(x))


class DecoderBlock(nn.Module):
    """Self attention over the queries, cross attention to the proxies, each with a geometry branch or without."""

    def __init__(self, self_attention: Attention, cross_attention: Attention, hidden: int, *, geometry: bool) -> None:
        super().__init__()
        width = self_attention.embed_dim
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = self_attention
        self.self_geometry = GeometryBranch(width) if geometry else None
        self.cross_attention_norm = nn.LayerNorm(width)
        self.source_norm = nn.LayerNorm(width)
        self.cross_attention = cross_attention
        self.cross_geometry = GeometryBranch(width) if geometry else None
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(
        self,
        x: Float[Tensor, "B Q E"],
        source: Float[Tensor, "B S E"],
        indices: Int[Tensor, "B Q K"],
        source_indices: Int[Tensor, "B Q K"],
    ) -> Float[Tensor, "B Q E"]:
        normed = self.self_attention_norm(x)
        attended = self.self_attention(normed)
        x = x + (attended if self.self_geometry is None else self.self_geometry(attended, normed, normed, indices))
        normed, source = self.cross_attention_norm(x), self.source_norm(source)
        attended = self.cross_attention(normed, source, source)
        if self.cross_geometry is not None:
            attended = self.cross_geometry(attended, normed, source, source_indices)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x))


class QueryGenerator(nn.Module):
    """Coarse points from the maximum over the proxies, and a feature for each of them (section 3.3)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        wide = layout.global_width
        self.queries = layout.queries
        self.summarise = perceptron(layout.width, wide, wide)
        self.hidden = Linear(wide, wide)
        self.coarse = Coordinates(wide, 3 * layout.queries)
        # From zero, all queries would start as one point with one feature, and attention between them with no work.
        nn.init.normal_(self.coarse.bias, std=SPREAD)
        enter = Pointwise(wide + 3, wide)
        nn.init.normal_(enter.weight[:, wide:])  # three columns of coordinates, beside as many as ``wide`` of the shape
        self.embed = nn.Sequential(
            enter,
            nn.LeakyReLU(SLOPE),
            Pointwise(wide, wide),
            nn.LeakyReLU(SLOPE),
            Pointwise(wide, layout.width),
        )

    def forward(self, x: Float[Tensor, "B S E"]) -> tuple[Float[Tensor, "B Q 3"], Float[Tensor, "B Q E"]]:
        shape = self.summarise(x).amax(1)
        coarse = self.coarse(F.relu(self.hidden(shape))).view(len(x), self.queries, 3)
        repeated = shape[:, None].expand(-1, self.queries, -1)
        return coarse, self.embed(torch.cat((repeated, coarse.to(shape.dtype)), dim=-1))


class Fold(nn.Module):
    """``MLP([u ; feature])`` for the points u of a grid: three layers, batch normalisation after the first two."""

    def __init__(self, inputs: int, width: int, hidden: int) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width
        self.enter = Pointwise(inputs + width, hidden)
        self.enter_norm = PointNorm(hidden)
        self.middle = Pointwise(hidden, hidden // 2)
        self.middle_norm = PointNorm(hidden // 2)
        self.leave = Coordinates(hidden // 2, 3, std=(2 / (hidden // 2 + 3)) ** 0.5)

    def forward(self, grid: Float[Tensor, "*R P inputs"], features: Float[Tensor, "R E"]) -> Float[Tensor, "R P 3"]:
        # The first product is taken apart: a feature is the same for all points of its grid.
        of_grid, of_feature = self.enter.weight.split((self.inputs, self.width), dim=1)
        x = F.linear(grid.to(features.dtype), of_grid, self.enter.bias) + F.linear(features, of_feature)[:, None]
        return self.leave(F.relu(self.middle_norm(self.middle(F.relu(self.enter_norm(x))))))


class Folding(nn.Module):
    """Two foldings of a square grid, each by a perceptron that sees the query's feature (Yang et al., FoldingNet).

    The first one turns grid points in [-1, 1]^2 into three dimensions, the second one those into offsets.
    """

    grid: Tensor

    def __init__(self, width: int, side: int, hidden: int) -> None:
        super().__init__()
        line = torch.linspace(-1.0, 1.0, side)
        self.register_buffer("grid", torch.cartesian_prod(line, line), persistent=False)
        self.first = Fold(2, width, hidden)
        self.second = Fold(3, width, hidden)

    def forward(self, features: Float[Tensor, "R E"]) -> Float[Tensor, "R P 3"]:
        """Offsets of P = side^2 points for each of R features."""
        return self.second(self.first(self.grid, features), features)


class PoinTr(nn.Module):
    """A partial cloud ``[B, N, 3]`` to a coarse and a fine completion; all input points are part of both results.

    Args:
        slots: attention factories; asked for NS (encoder and decoder) and NC (queries to proxies).
        input_points: N, at least ``layout.middle``.
        layout: the sizes.

    Raises:
        ValueError: the numbers of points do not fit each other.
    """

    def __init__(self, slots: Slots, *, input_points: int, layout: Layout) -> None:
        super().__init__()
        if not layout.proxies <= layout.middle <= input_points:
            raise ValueError(
                f"proxies={layout.proxies}, middle={layout.middle}, input_points={input_points}:"
                " each are chosen from the next"
            )
        width, heads, hidden = layout.width, layout.heads, layout.hidden
        self.coarse_inputs = min(layout.queries, input_points)
        self.farthest = max(layout.middle, self.coarse_inputs)
        self.count = layout.block_neighbours
        self.grouper = Grouper(layout)
        self.positions = perceptron(3, layout.position_hidden, width)
        self.embed = perceptron(layout.edge_channels[-1], width, width)
        self.encoder = nn.ModuleList(
            EncoderBlock(
                slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=layout.proxies),
                hidden,
                geometry=index < layout.geometry_blocks,
            )
            for index in range(layout.encoder_blocks)
        )
        self.query_generator = QueryGenerator(layout)
        self.decoder = nn.ModuleList(
            DecoderBlock(
                slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=layout.queries),
                slots[Pattern.NONCAUSAL_CROSS](width, heads, max_length=layout.queries, max_length_key=layout.proxies),
                hidden,
                geometry=index < layout.geometry_blocks,
            )
            for index in range(layout.decoder_blocks)
        )
        self.summarise = perceptron(width, layout.global_width, layout.global_width)
        self.reduce = Linear(width + layout.global_width + 3, width)
        self.folding = Folding(width, layout.fold, layout.fold_hidden)

    def forward(self, points: Float[Tensor, "B N 3"]) -> tuple[Float[Tensor, "B Qc 3"], Float[Tensor, "B P 3"]]:
        """Coarse: Q queries and as many farthest input points (N at most). Fine: Q fold^2 points and the N of input."""
        farthest = farthest_points(points, self.farthest)
        centres, local = self.grouper(points, farthest)
        x = self._encode(centres, local)
        coarse, queries = self._decode(centres, x)
        fine = self._rebuild(coarse, queries)
        sparse = gather(points, farthest[:, : self.coarse_inputs])
        return torch.cat((coarse, sparse), dim=1), torch.cat((fine, points), dim=1)

    def _encode(self, centres: Float[Tensor, "B S 3"], local: Float[Tensor, "B S C"]) -> Float[Tensor, "B S E"]:
        indices = neighbours(centres, centres, self.count)
        positions, x = self.positions(centres), self.embed(local)
        for block in self.encoder:
            x = block(x + positions, indices)
        return x

    def _decode(
        self, centres: Float[Tensor, "B S 3"], x: Float[Tensor, "B S E"]
    ) -> tuple[Float[Tensor, "B Q 3"], Float[Tensor, "B Q E"]]:
        coarse, queries = self.query_generator(x)
        indices = neighbours(coarse, coarse, self.count)
        source_indices = neighbours(coarse, centres, self.count)
        for block in self.decoder:
            queries = block(queries, x, indices, source_indices)
        return coarse, queries

    def _rebuild(self, coarse: Float[Tensor, "B Q 3"], queries: Float[Tensor, "B Q E"]) -> Float[Tensor, "B P 3"]:
        """``fine = coarse + folding(W [shape ; query ; coarse])``, the shape's feature being a maximum over queries."""
        shape = self.summarise(queries).amax(1, keepdim=True).expand(-1, queries.shape[1], -1)
        features = self.reduce(torch.cat((shape, queries, coarse.to(shape.dtype)), dim=-1))
        offsets = self.folding(features.flatten(0, 1)).view(*coarse.shape[:2], -1, 3)
        return (coarse[:, :, None] + offsets).flatten(1, 2)
