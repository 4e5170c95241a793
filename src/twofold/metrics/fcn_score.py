"""FCN-score (Isola et al. 2017, section 4.1): can a network that segments real photos segment the translated ones?

The segmentation network is trained on the real photos of the set at hand, with their label maps, and kept on disk. It
is small and far from the state of the art, so how well it does on real photos it never saw stands in every figure's
name: figures of segmenters of different accuracy are different measurements, and none is one on Cityscapes with FCN-8s.

Label maps come as images whose colours are those of a palette; `classes_of_colors` turns them into class numbers. The
same serves for the other direction, photo → labels, without any network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.metrics.record import Result, count_text, half_sample_errors
from twofold.trained_once import train_once

NO_CLASS = -1
"""The number of pixels that no class is known of; they count nowhere."""


@dataclass(frozen=True)
class Settings:
    """How a segmenter is built and trained."""

    classes: int
    width: int = 24
    steps: int = 600
    batch_size: int = 8
    learning_rate: float = 3e-3
    seed: int = 0


def classes_of_colors(x: Tensor, palette: Sequence[tuple[int, int, int]], *, ignore: Sequence[int] = ()) -> Tensor:
    """The class of each pixel of label maps (n, 3, height, width) in [-1, 1]: the nearest colour of the palette, or
    `NO_CLASS` where that is one of `ignore`. (n, height, width) int64.

    >>> x = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    >>> classes_of_colors(x, [(0, 0, 0), (250, 0, 0)]).item()
    1
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise InputError(f"label maps have shape {tuple(x.shape)}; give (n, 3, height, width)")
    colors = torch.tensor(palette, dtype=torch.float32, device=x.device) / 127.5 - 1
    parts = []
    for some in x.float().split(64):
        distance = (some[:, None] - colors[None, :, :, None, None]).square().sum(2)
        parts.append(distance.argmin(1))
    classes = torch.cat(parts)
    for one in ignore:
        classes[classes == one] = NO_CLASS
    return classes


def confusion_matrices(found: Tensor, true: Tensor, classes: int) -> Tensor:
    """(n, classes, classes) int64: how many pixels of a true class (row) were given each class (column), of each image.

    Pixels whose true class is `NO_CLASS` count nowhere. A pixel found to be of no class is an error of no column: it
    needs one, so give classes in 0 … classes - 1 wherever the truth is known.
    """
    if found.shape != true.shape:
        raise InputError(f"found classes are {tuple(found.shape)} and true ones {tuple(true.shape)}; give equal shapes")
    image = torch.arange(len(true), device=true.device).view(-1, *[1] * (true.dim() - 1)).expand_as(true)
    known = true != NO_CLASS
    image, found, true = image[known], found[known], true[known]
    if len(true) == 0 or int(found.min()) < 0 or max(int(found.max()), int(true.max())) >= classes:
        raise InputError(f"classes must be 0 … {classes - 1} wherever the true class is known, and some must be known")
    count = len(known) * classes * classes
    cells = torch.bincount((image * classes + true) * classes + found, minlength=count)
    return cells.view(len(known), classes, classes)


def confusion_matrix(found: Tensor, true: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: `confusion_matrices` of a whole set in one."""
    return confusion_matrices(found, true, classes).sum(0)


def segmentation_scores(matrix: Tensor) -> dict[str, float]:
    """Of a confusion matrix: pixel accuracy, class accuracy (mean over classes that occur of the part found) and class
    IoU (mean over the same of intersection over union).

    >>> segmentation_scores(torch.tensor([[3, 1], [0, 4]]))
    {'pixel_accuracy': 0.875, 'class_accuracy': 0.875, 'class_iou': 0.775}
    """
    m = matrix.double()
    right, truth, found = m.diagonal(), m.sum(1), m.sum(0)
    occurs = truth > 0
    return {
        "pixel_accuracy": float(right.sum() / m.sum()),
        "class_accuracy": float((right[occurs] / truth[occurs]).mean()),
        "class_iou": float((right[occurs] / (truth + found - right)[occurs]).mean()),
    }


class Segmenter(nn.Module):
    """A small fully convolutional network: photos (n, 3, height, width) in [-1, 1] to logits of classes per pixel."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        w = settings.width
        self.settings = settings
        self.down = nn.ModuleList(
            [_layer(3, w, 1), _layer(w, 2 * w, 2), _layer(2 * w, 4 * w, 2), _layer(4 * w, 4 * w, 2)]
        )
        self.up = nn.ModuleList([_layer(8 * w, 4 * w, 1), _layer(6 * w, 2 * w, 1), _layer(3 * w, w, 1)])
        self.head = nn.Conv2d(w, settings.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        h = x
        for layer in self.down:
            h = layer(h)
            maps.append(h)
        for layer, other in zip(self.up, reversed(maps[:-1]), strict=True):
            h = layer(torch.cat([F.interpolate(h, size=other.shape[2:], mode="nearest"), other], dim=1))
        return self.head(h)

    def classes(self, x: Tensor) -> Tensor:
        """The likeliest class of each pixel, (n, height, width) int64."""
        with torch.no_grad():
            return torch.cat([self(some).argmax(1) for some in x.split(32)])

    def features(self, x: Tensor) -> Tensor:
        """What the network makes of each photo, (n, features): means over positions of its maps on the way down. For
        distances between photos where there is no better measure."""
        parts = []
        with torch.no_grad():
            for some in x.split(32):
                h, means = some, []
                for layer in self.down:
                    h = layer(h)
                    means.append(h.mean(dim=(2, 3)))
                parts.append(torch.cat(means, dim=1))
        return torch.cat(parts)


def _layer(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def trained_segmenter(photos: Tensor, true: Tensor, settings: Settings, *, cache: Path | None = None) -> Segmenter:
    """A segmenter trained on real photos (n, 3, height, width) in [-1, 1] and their classes (n, height, width), in eval
    mode. Photos are mirrored at random; rare classes weigh more, by the inverse root of their share.

    cache: a folder in which it is kept, under a name that depends on the photos, the classes and the settings.
    """
    if len(photos) != len(true) or photos.shape[2:] != true.shape[1:]:
        raise InputError(f"photos are {tuple(photos.shape)} and classes {tuple(true.shape)}; give one map per photo")
    path = None if cache is None else cache / f"segmenter-{_digest(photos, true, settings)}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = Segmenter(settings)
    train_once(net, partial(_train, net, photos, true), path, what="segmenter")
    return net.eval()


def _train(net: Segmenter, photos: Tensor, true: Tensor) -> None:
    s = net.settings
    known = true[true != NO_CLASS]
    share = torch.bincount(known, minlength=s.classes).double() / len(known)
    weight = torch.where(share > 0, share.clamp_min(1e-4).rsqrt(), 0.0)
    weight = (weight / weight[share > 0].mean()).to(photos)
    optimizer = torch.optim.Adam(net.parameters(), lr=s.learning_rate)
    parameters = list(net.parameters())
    for step, chosen in enumerate(_orders(len(photos), s)):
        for group in optimizer.param_groups:
            group["lr"] = s.learning_rate * (1 - step / s.steps)
        x, y = photos[chosen], true[chosen]
        if step % 2:
            x, y = x.flip(3), y.flip(2)
        loss = F.cross_entropy(net(x), y, weight=weight, ignore_index=NO_CLASS)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def _orders(count: int, settings: Settings) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        yield torch.randint(count, (min(settings.batch_size, count),), generator=generator)


def _digest(photos: Tensor, true: Tensor, settings: Settings) -> str:
    digest = hashlib.sha256(str(sorted(asdict(settings).items())).encode())
    for tensor in (photos, true):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fcn_score(
    segmenter: Segmenter, translated: Tensor, true: Tensor, *, real: Tensor, split: str = "test"
) -> list[Result]:
    """FCN-scores of translated photos (n, 3, height, width) in [-1, 1] made from label maps of the classes `true`:
    pixel accuracy, class accuracy and class IoU, from one confusion matrix over the set.

    real: the photos that belong to the same maps; what the segmenter says of them is the `reference` of each figure and
    its pixel accuracy stands in the names.
    """
    settings = segmenter.settings
    on_real = segmentation_scores(confusion_matrix(segmenter.classes(real), true, settings.classes))
    accuracy = f"{100 * on_real['pixel_accuracy']:.1f}"
    protocol = {"segmenter": {**asdict(settings), "pixel_accuracy_on_real_percent": float(accuracy)}}
    found = segmenter.classes(translated)
    return _results("fcn", f"segmenter-acc{accuracy}", found, true, settings.classes, split, protocol, on_real)


def label_score(
    found: Tensor,
    true: Tensor,
    palette: Sequence[tuple[int, int, int]],
    *,
    ignore: Sequence[int] = (),
    split: str = "test",
) -> list[Result]:
    """Scores of label maps made from photos, `found` (n, 3, height, width) in [-1, 1], against the classes `true`: each
    pixel is of the class whose colour is nearest, among those that are not ignored. Figures as of `fcn_score`."""
    kept = [k for k in range(len(palette)) if k not in ignore]
    nearest = torch.tensor(kept)[classes_of_colors(found, [palette[k] for k in kept])]
    return _results("labels", "", nearest, true, len(palette), split, {"colors": len(kept)}, None)


def _results(
    kind: str,
    note: str,
    found: Tensor,
    true: Tensor,
    classes: int,
    split: str,
    more: dict[str, Any],
    beside: dict[str, float] | None,
) -> list[Result]:
    matrices = confusion_matrices(found, true, classes)

    def scores(some: Tensor) -> list[float]:
        return list(segmentation_scores(some.sum(0)).values())

    errors = half_sample_errors(scores, matrices, generator=torch.Generator().manual_seed(0))
    protocol = {
        "count": len(found),
        "split": split,
        "size": "x".join(map(str, found.shape[1:])),
        "pixels": "of unknown class left out",
        "uncertainty": "delete-half jackknife over images, 10 halves",
        **more,
    }
    ending = "_".join([count_text(len(found)), split, *([note] if note else [])])
    figures = segmentation_scores(matrices.sum(0))
    return [
        Result(f"{kind}_{name}_{ending}", value, "higher", protocol, error, None if beside is None else beside[name])
        for (name, value), error in zip(figures.items(), errors, strict=True)
    ]
