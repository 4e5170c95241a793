"""FCN-score, diversity, cycle and identity errors, pixel agreement: closed forms and limit cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twofold.errors import InputError
from twofold.metrics.fcn_score import (
    NO_CLASS,
    Settings,
    classes_of_colors,
    confusion_matrices,
    confusion_matrix,
    fcn_score,
    label_score,
    segmentation_scores,
    trained_segmenter,
)
from twofold.metrics.record import compare_results
from twofold.metrics.translation import diversity, feature_distance, map_errors, negatives, pixel_agreement

PALETTE = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 0)]


def maps(n: int, seed: int = 0) -> torch.Tensor:
    """Classes of a vertical boundary at a random place: (n, 16, 16)."""
    edge = torch.randint(3, 13, (n, 1, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(16).expand(n, 16, 16) >= edge).long() + 1


def photos(true: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Noisy photos of the classes: class 1 reddish, class 2 blueish."""
    colors = torch.tensor([[0.0, 0, 0], [0.7, -0.5, -0.5], [-0.5, -0.4, 0.6]])
    x = colors[true].permute(0, 3, 1, 2)
    return (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def test_confusion_and_scores_against_numpy():
    random = np.random.RandomState(0)
    true, found = random.randint(-1, 4, (5, 6, 7)), random.randint(0, 4, (5, 6, 7))
    matrix = confusion_matrix(torch.from_numpy(found), torch.from_numpy(true), 4)
    known = true >= 0
    wanted = np.array([[((true == i) & (found == j)).sum() for j in range(4)] for i in range(4)])
    assert np.array_equal(matrix.numpy(), wanted) and matrix.sum() == known.sum()
    each = confusion_matrices(torch.from_numpy(found), torch.from_numpy(true), 4)
    of_third = confusion_matrix(torch.from_numpy(found[2:3]), torch.from_numpy(true[2:3]), 4)
    assert each.shape == (5, 4, 4) and torch.equal(each[2], of_third)
    scores = segmentation_scores(matrix)
    assert scores["pixel_accuracy"] == pytest.approx((true == found)[known].mean())
    assert scores["class_accuracy"] == pytest.approx(np.mean([(found[true == k] == k).mean() for k in range(4)]))
    iou = [((true == k) & (found == k)).sum() / ((true == k) | ((found == k) & known)).sum() for k in range(4)]
    assert scores["class_iou"] == pytest.approx(np.mean(iou))
    perfect = segmentation_scores(confusion_matrix(torch.tensor([[0, 2]]), torch.tensor([[0, 2]]), 4))
    assert set(perfect.values()) == {1.0}, "classes that do not occur do not count"
    with pytest.raises(InputError, match="give equal shapes"):
        confusion_matrix(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 2)


def test_colours_become_the_nearest_class():
    x = torch.tensor([[-1.0, -1, -1], [0.9, -1, -1], [-1, 0.2, -0.9]]).T.view(1, 3, 1, 3)
    assert classes_of_colors(x, PALETTE).flatten().tolist() == [0, 1, 2]
    assert classes_of_colors(x, PALETTE, ignore=(0,)).flatten().tolist() == [NO_CLASS, 1, 2]
    true = torch.tensor([[[0, 1, 2]]])
    by_name = {r.name: r for r in label_score(x, true, PALETTE, ignore=(3,))}
    assert by_name["labels_pixel_accuracy_1_test"].value == 1.0


def test_fcn_score_orders_real_photos_before_wrong_and_empty_ones(tmp_path):
    torch.set_num_threads(1)
    settings = Settings(classes=3, width=4, steps=60)
    true = maps(40)
    segmenter = trained_segmenter(photos(true), true, settings, cache=tmp_path)
    held, real = maps(16, seed=1), photos(maps(16, seed=1), seed=1)
    values = {}
    for name, translated in (
        ("real", photos(held, seed=2)),
        ("shuffled", photos(held.roll(1, 0), seed=2)),
        ("grey", torch.zeros_like(real)),
    ):
        records = fcn_score(segmenter, translated, held, real=real)
        values[name] = [r.value for r in records]
        assert all(r.reference > 0.9 and r.uncertainty is not None for r in records)
    assert values["real"][0] > 0.9 and values["real"][2] > 0.8
    assert values["real"][0] > values["shuffled"][0] + 0.1 and values["real"][2] > values["grey"][2] + 0.3
    accuracy = records[0].reference
    assert records[0].name == f"fcn_pixel_accuracy_16_test_segmenter-acc{100 * accuracy:.1f}"
    # Kept, found again, and trained anew for other data.
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = trained_segmenter(photos(true), true, settings, cache=tmp_path)
    assert file.stat().st_mtime_ns == before and torch.equal(again(real), segmenter(real))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cached segmenter .* cannot be read"):
        trained_segmenter(photos(true), true, settings, cache=tmp_path)
    file.write_bytes(whole)
    other = fcn_score(
        trained_segmenter(photos(true), true, Settings(classes=3, width=4, steps=5)), real, held, real=real
    )
    with pytest.raises(InputError, match="different measurements"):  # by segmenters of different accuracy
        compare_results(records[0], other[0])
    assert segmenter.features(real).shape == (16, 4 * (1 + 2 + 4 + 4))
    with pytest.raises(InputError, match="one map per photo"):
        trained_segmenter(real, true, settings)


def test_diversity_errors_and_agreement():
    same = torch.rand(5, 1, 3, 4, 4).expand(5, 6, 3, 4, 4)
    assert diversity(same).tolist() == [0] * 5
    steps = torch.arange(4.0).view(1, 4, 1) * torch.tensor([1.0, 2.0]).view(2, 1, 1)
    assert diversity(steps).tolist() == [1, 2]
    plane = feature_distance(lambda x: torch.cat([3 * x, 4 * x], 1))
    assert diversity(steps, plane).tolist() == [5, 10]
    assert map_errors(torch.zeros(2, 3), torch.tensor([[-0.5] * 3, [0, 0, 0.75]])).tolist() == [0.5, 0.25]
    a = torch.rand(4, 1, 8, 8) * 2 - 1
    assert pixel_agreement(a, a).tolist() == [1] * 4 and pixel_agreement(-a, a).tolist() == [0] * 4
    bright = a + torch.linspace(-1, 1, 8)
    assert negatives(bright, -bright.expand(4, 3, 8, 8)) and not negatives(bright, bright.roll(1, 0))
    for wrong in (
        lambda: diversity(torch.zeros(3, 1, 2)),
        lambda: map_errors(a, a[:1]),
        lambda: pixel_agreement(a, a[:1]),
    ):
        with pytest.raises(InputError):
            wrong()
