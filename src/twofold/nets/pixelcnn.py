"""Gated PixelCNN (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders"): an image as a
sequence of pixels, each predicted from those above it and to its left by convolutions that see nothing else.

Two stacks: the vertical one sees the rows above, the horizontal one the pixels to the left and, through it, the rows
above. There are no masks: an image that is padded and shifted, under kernels of the masks' shapes, computes the same
without multiplying by zeros. Between the layers there may be attention over all earlier pixels (PixelSNAIL: Chen et al.
2018).

Read from `PixelCNN`. Calling it computes every pixel's logits at once; `start` and `step` the same pixel by pixel, with
the vertical stack a row at a time, from a cache of as many rows and columns as the kernels reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.attention import CausalAttention, KeyValues
from twofold.nets.labels import LabelEmbedding, refuse_unknown, without_label
from twofold.nets.layers import whole

Condition = Mapping[str, Tensor]


class CategoricalHead(nn.Module):
    """Logits of one channel's levels from a pixel's features and the values of its earlier channels.

    Channels last: features (…, width) and values (…, earlier · size) → (…, levels).
    """

    def __init__(self, width: int, levels: int, channels: int, size: int) -> None:
        super().__init__()
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Linear(width + k * size, width), nn.ReLU(), nn.Linear(width, levels))
            for k in range(channels)
        )

    def forward(self, features: Tensor, earlier: Tensor, channel: int) -> Tensor:
        return self.channels[channel](torch.cat([features, earlier], dim=-1) if channel else features)


class GatedLayer(nn.Module):
    """One layer of both stacks. `shift` (batch, 4 · width, height or 1, width or 1) is added before the gates: the
    first half in the vertical stack, the second in the horizontal one."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.vertical = nn.Conv2d(width, 2 * width, (self.reach + 1, kernel))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.reach + 1), bias=False)
        self.out = nn.Conv2d(width, width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, v: Tensor, h: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        r = self.reach
        v, linked = self.rows(F.pad(v, (r, r, r, 0)), shift)
        h = h + self.out(self.drop(gated(self.horizontal(F.pad(h, (r, 0, 0, 0))) + linked)))
        return self.drop(v), h

    def rows(self, padded: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vertical stack of the rows that the kernel finds in `padded`, and what it gives to the horizontal one."""
        v = self.vertical(padded)
        linked = self.link(v)
        if shift is not None:
            for_v, for_h = shift.chunk(2, dim=1)
            v, linked = v + for_v, linked + for_h
        return gated(v), linked


def gated(h: Tensor) -> Tensor:
    """tanh of the first half of the channels times the logistic function of the second (their eq. 2)."""
    a, b = h.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class PixelAttention(nn.Module):
    """h + attention(norm h, place): every pixel asks all earlier ones and itself. Channels last: (batch, n, width).

    A pixel's features know only the pixels before it, so looking at its own is causal too.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, inputs=width + 2)

    def forward(self, h: Tensor, places: Tensor, memory: KeyValues | None = None) -> Tensor:
        seen = torch.cat([self.norm(h), places.expand(len(h), -1, -1)], dim=-1)
        return h + self.attention(seen, memory)


class PixelCNN(nn.Module):
    """Logits of each channel of each pixel given those before it, in raster order with the channels innermost.

    Tokens are levels (batch, n) int64; an image has n = height · width · channels of them (see `to_tokens`). Calling it
    gives (batch, n, levels) for the first n tokens. It obeys `decode.SequenceModel`.

    Args:
        channels, height, width_pixels: the image's shape.
        levels: values a channel can take.
        width: channels of both stacks.
        layers: gated layers after the input layer.
        kernel, first_kernel: odd sizes of the kernels whose upper halves are used.
        attention_every: attention after each so many layers; 0: none.
        embedding: a learned vector of this length for each level (codes); None: the level as one number in [-1, 1].
        classes: number of labels; `condition` may then hold "y" (batch,) int64, where `classes` stands for no label.
        vector: length of "vector" (batch, vector) in the condition, which moves every pixel alike (the paper's eq. 3).
        map_channels: channels of "map" (batch, map_channels, height, width), which moves each pixel (its eq. 4).
        head: what turns features into logits; None: `CategoricalHead`. It is called as head(features, earlier values,
            channel), channels last.

    Raises `InputError` for sizes that do not fit and for conditions that are missing, unknown or of another shape.

    >>> net = PixelCNN(1, 8, 8, levels=2, width=8, layers=2)
    >>> net(torch.zeros(3, 64, dtype=torch.int64)).shape
    torch.Size([3, 64, 2])
    """

    slides = False

    def __init__(
        self,
        channels: int,
        height: int,
        width_pixels: int,
        *,
        levels: int,
        width: int = 64,
        layers: int = 8,
        kernel: int = 3,
        first_kernel: int = 7,
        attention_every: int = 0,
        heads: int = 4,
        embedding: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        vector: int | None = None,
        map_channels: int | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("kernel", kernel), ("first_kernel", first_kernel)):
            if whole(name, value, least=3) % 2 == 0:
                raise InputError(f"{name} is {value}; give an odd number of at least 3")
        self.shape = (whole("channels", channels), whole("height", height), whole("width_pixels", width_pixels))
        self.vocabulary = whole("levels", levels, least=2)
        self.window = channels * height * width_pixels
        self.classes, self.vector, self.map_channels = classes, vector, map_channels
        self.width = whole("width", width)
        self.table = None if embedding is None else nn.Embedding(levels, embedding)
        size = embedding or 1
        self.size = size
        inputs = channels * size + 1
        self.reach = first_kernel // 2
        self.vertical = nn.Conv2d(inputs, width, (self.reach, first_kernel))
        self.link = nn.Conv2d(width, width, 1)
        self.horizontal = nn.Conv2d(inputs, width, (1, self.reach), bias=False)
        self.layers = nn.ModuleList(GatedLayer(width, kernel, dropout) for _ in range(whole("layers", layers)))
        self.attention = nn.ModuleDict(
            {
                str(k): PixelAttention(width, heads)
                for k in range(layers)
                if attention_every and k % attention_every == attention_every - 1
            }
        )
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.project = None if vector is None else nn.Linear(vector, width)
        conditioned = layers if classes is not None or vector is not None else 0
        self.shifts = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(conditioned))
        mapped = [] if map_channels is None else [map_channels] * layers
        self.map_shifts = nn.ModuleList(nn.Conv2d(inputs, 4 * width, 1, bias=False) for inputs in mapped)
        self.head = head if head is not None else CategoricalHead(width, levels, channels, size)

    # All pixels at once.

    def forward(self, tokens: Tensor, condition: Condition | None = None) -> Tensor:
        given = tokens.shape[1]
        if not 1 <= given <= self.window:
            raise InputError(f"{given} tokens do not fit; this model's images have {self.window}")
        values = self.values(self.to_grid(F.pad(tokens, (0, self.window - given))))
        features = self.features(values, condition)
        channels = [
            self.head(features, values[..., : k * self.size], k) for k in range(self.shape[0])
        ]  # (batch, height, width, levels) each
        return torch.stack(channels, dim=3).flatten(1, 3)[:, :given]

    def features(self, values: Tensor, condition: Condition | None = None) -> Tensor:
        """What the head reads: (batch, height, width, width of the stacks), each pixel's from the pixels before it.

        `values` (batch, height, width, channels · size) as `values` makes them; they may carry gradient.
        """
        shifts = self._shifts(len(values), condition)
        x = self._with_border(values)
        r = self.reach
        v = self.vertical(F.pad(x, (r, r, r, -1)))
        h = self.horizontal(F.pad(x, (r, -1, 0, 0))) + self.link(v)
        for k, layer in enumerate(self.layers):
            v, h = layer(v, h, shifts[k])
            if str(k) in self.attention:
                flat = self.attention[str(k)](h.flatten(2).transpose(1, 2), self._places(h))
                h = flat.transpose(1, 2).unflatten(2, h.shape[2:])
        return F.relu(h).permute(0, 2, 3, 1)

    # Pixel by pixel.

    def start(self, rows: int, condition: Condition | None = None) -> PixelCache:
        """An empty image, with the vertical stack of its first row."""
        return PixelCache.of(self, rows, condition)

    def step(self, tokens: Tensor, cache: PixelCache) -> Tensor:
        """Logits (rows, levels) of the token after tokens (rows, k), which follow those in the cache."""
        channels, _, width = self.shape
        if cache.filled + tokens.shape[1] >= self.window:
            raise InputError(f"the image of {self.window} tokens is full")
        values = self.values(tokens)
        # Rows that these tokens complete need the horizontal stack only if attention will look back at them.
        last_row = (cache.filled + tokens.shape[1]) // (width * channels)
        for k in range(tokens.shape[1]):
            pixel, channel = divmod(cache.filled, channels)
            row, column = divmod(pixel, width)
            if channel == 0 and (row == last_row or self.attention):
                cache.features_of(row, column)
            cache.put(values[:, k], row, column, channel)
            cache.filled += 1
            if channel == channels - 1 and column == width - 1:
                cache.begin_row(row + 1)
        pixel, channel = divmod(cache.filled, channels)
        row, column = divmod(pixel, width)
        features = cache.features_of(row, column)
        return self.head(features, cache.earlier(row, column, channel), channel)

    def null(self, condition: Condition | None) -> dict[str, Tensor]:
        """The condition without its label; a vector or a map stays."""
        return without_label(condition, self.classes)

    # Between tokens, grids and values.

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, height · width · channels) as (batch, height, width, channels)."""
        return tokens.unflatten(1, (*self.shape[1:], self.shape[0]))

    def values(self, tokens: Tensor) -> Tensor:
        """What the network sees of tokens (…, k): (…, k · size)."""
        if self.table is None:
            return tokens.to(self.vertical.weight.dtype) * (2 / (self.vocabulary - 1)) - 1
        return self.table(tokens).flatten(-2) if tokens.ndim > 2 else self.table(tokens)

    def _with_border(self, values: Tensor) -> Tensor:
        """(batch, channels · size + 1, height, width): one more channel, of ones, tells pixels from the padding."""
        return F.pad(values, (0, 1), value=1.0).permute(0, 3, 1, 2)

    def _places(self, like: Tensor) -> Tensor:
        """Row and column of each pixel from -1 to 1, (pixels, 2)."""
        _, height, width = self.shape
        rows = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
        columns = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)

    def _shifts(self, batch: int, condition: Condition | None) -> Sequence[Tensor | None]:
        """What the condition adds in each layer, (batch, 4 · width, height or 1, width or 1); None without one."""
        condition = condition or {}
        wanted = {"y": self.classes, "vector": self.vector, "map": self.map_channels}
        refuse_unknown(condition, [name for name, size in wanted.items() if size is not None])
        total: list[Any] = [0.0] * len(self.layers)
        joint: Any = 0.0
        if self.label is not None:
            joint = joint + self.label(condition.get("y"), batch)
        if self.project is not None:
            joint = joint + self.project(self._required(condition, "vector", (batch, self.vector)))
        if len(self.shifts):
            total = [shift(joint)[:, :, None, None] for shift in self.shifts]
        if self.map_channels is not None:
            field = self._required(condition, "map", (batch, self.map_channels, *self.shape[1:]))
            total = [before + shift(field) for before, shift in zip(total, self.map_shifts, strict=True)]
        return [None if isinstance(shift, float) else shift for shift in total]

    def _required(self, condition: Condition, name: str, shape: tuple[int | None, ...]) -> Tensor:
        given = condition.get(name)
        if given is None or given.shape != shape:
            found = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise InputError(f"condition {name!r} is {found}; this model needs {shape}")
        return given


@dataclass
class PixelCache:
    """An image that is being drawn: the pixels so far, and of every layer the last rows of the vertical stack and the
    current row of the horizontal one."""

    net: PixelCNN
    x: Tensor
    """(rows, inputs, height + reach, width + 2 · reach): the image with its padding above and beside it."""
    shifts: Sequence[Tensor | None]
    above: list[Tensor]
    """Per layer (rows, width, reach + 1, width + 2 · reach): the vertical stack's input, its last row the current."""
    left: list[Tensor]
    """Per layer (rows, width + reach, width): the horizontal stack's input in the current row, channels last."""
    kernels: list[tuple[Tensor, Tensor, Tensor]]
    """Per layer, as matrices: the horizontal kernel, the residual's weight and its bias."""
    memories: dict[int, KeyValues]
    places: Tensor
    filled: int = 0
    begun: list[Tensor] = field(default_factory=list)
    """What the current row's vertical stack gives to the horizontal one: for the input layer and each layer
    (columns, rows, channels)."""
    current: tuple[int, int, Tensor] | None = None
    """The pixel whose features were computed last, and they."""

    @classmethod
    def of(cls, net: PixelCNN, rows: int, condition: Condition | None) -> PixelCache:
        """All memory allocated, and the first row's vertical stack computed."""
        channels, height, width = net.shape
        like, r = net.vertical.weight, net.reach
        layers = [cast(GatedLayer, layer) for layer in net.layers]
        x = like.new_zeros(rows, channels * net.size + 1, height + r, width + 2 * r)
        x[:, -1, r:, r : r + width] = 1
        cache = cls(
            net=net,
            x=x,
            shifts=net._shifts(rows, condition),
            above=[like.new_zeros(rows, net.width, k.reach + 1, width + 2 * k.reach) for k in layers],
            left=[like.new_zeros(rows, width + k.reach, net.width) for k in layers],
            kernels=[_matrices(layer) for layer in layers],
            memories={
                int(k): cast(PixelAttention, block).attention.memory(rows, height * width)
                for k, block in net.attention.items()
            },
            places=net._places(like),
        )
        cache.begin_row(0)
        return cache

    def put(self, values: Tensor, row: int, column: int, channel: int) -> None:
        """Write one channel (rows,) or (rows, size) of a pixel."""
        size, r = self.net.size, self.net.reach
        self.x[:, channel * size : (channel + 1) * size, row + r, column + r] = values.reshape(-1, size)

    def earlier(self, row: int, column: int, channel: int) -> Tensor:
        """The values of a pixel's channels before this one, (rows, channel · size)."""
        r = self.net.reach
        return self.x[:, : channel * self.net.size, row + r, column + r]

    def begin_row(self, row: int) -> None:
        """Compute the vertical stack of a row, which depends on the rows above it only."""
        net, r = self.net, self.net.reach
        if row == net.shape[1]:
            return
        v = net.vertical(self.x[:, :, row : row + r])
        self.begun = [_by_column(net.link(v))]
        for layer, above, left, shift in zip(net.layers, self.above, self.left, self.shifts, strict=True):
            reach = cast(GatedLayer, layer).reach
            above[:, :, :-1] = above[:, :, 1:].clone()
            above[:, :, -1, reach : reach + v.shape[3]] = v[:, :, 0]
            if shift is not None and shift.shape[2] > 1:
                shift = shift[:, :, row : row + 1]
            v, linked = cast(GatedLayer, layer).rows(above, shift)
            self.begun.append(_by_column(linked))
            left.zero_()

    def features_of(self, row: int, column: int) -> Tensor:
        """What the head reads of a pixel, (rows, width)."""
        if self.current is not None and self.current[:2] == (row, column):
            return self.current[2]
        net, r = self.net, self.net.reach
        seen = self.x[:, :, row + r, column : column + r].flatten(1)
        h = torch.addmm(self.begun[0][column], seen, self._first_kernel())
        for k, (kernel, out, bias) in enumerate(self.kernels):
            left = self.left[k]
            reach = left.shape[1] - net.shape[2]
            left[:, column + reach] = h
            window = left[:, column : column + reach + 1].flatten(1)
            gate = gated(torch.addmm(self.begun[k + 1][column], window, kernel))
            h = torch.addmm(h + bias, gate, out)
            if k in self.memories:
                place = self.places[row * net.shape[2] + column]
                h = net.attention[str(k)](h[:, None], place[None], self.memories[k])[:, 0]
        h = F.relu(h)
        self.current = (row, column, h)
        return h

    def _first_kernel(self) -> Tensor:
        return self.net.horizontal.weight.flatten(1).t()


def _matrices(layer: GatedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels laid out for one pixel: (columns · inputs, outputs), (inputs, outputs), (outputs,)."""
    horizontal = layer.horizontal.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()
    bias = layer.out.bias
    assert bias is not None
    return horizontal, layer.out.weight[:, :, 0, 0].t().contiguous(), bias


def _by_column(row: Tensor) -> Tensor:
    """(batch, channels, 1, columns) as (columns, batch, channels)."""
    return row[:, :, 0].permute(2, 0, 1).contiguous()
