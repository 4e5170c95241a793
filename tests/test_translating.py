"""The verb translate: any size of picture, folders, tiles that blend, variants, styles, both directions, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold import recipes
from twofold.cli import main
from twofold.data import load, pair
from twofold.errors import InputError
from twofold.model import Model
from twofold.spec import Spec
from twofold.translating import starts, tiled, translate, whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Small trained runs of 12×16 pictures, grey → RGB and RGB → RGB."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    x = np.random.RandomState(0).randint(0, 256, (20, 12, 16, 3), dtype=np.uint8)
    small = {"examples": 16, "batch_size": 8, "width": 4}
    twofold.train("bicycle-gan", data=pair(x[..., 0], x), out=root / "styles", latent=3, **small)
    twofold.train("cyclegan", data=pair(x, x[::-1].copy(), paired=False), out=root / "both", blocks=1, **small)
    vectors = pair(np.random.randn(40, 2), np.random.randn(40, 2))
    twofold.train("pix2pix", data=vectors, out=root / "vectors", **small)
    return {name: root / name for name in ("styles", "both", "vectors")}


def picture(path: Path, height: int, width: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(1).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


class Doubled(Model):
    """A model that turns colours into their negative, pixel by pixel: tiles must not change that."""

    def __init__(self, shape=(3, 12, 16)):
        spec = Spec("image", shape, input=Spec("image", shape))
        super().__init__(recipes.build("cyclegan", spec, {"width": 2, "blocks": 0})[1], torch.nn.ModuleDict())
        self.calls: list[tuple[int, ...]] = []

    def translate_tensor(self, a, **settings):
        self.calls.append(tuple(a.shape))
        return -a[:, None]


@pytest.mark.parametrize("size", [(12, 16), (13, 17), (30, 50), (5, 40), (7, 9)])
def test_tiles_cover_every_pixel_once_in_sum(size):
    model = Doubled()
    x = torch.rand(3, *size) * 2 - 1
    made = tiled(model, x, (12, 16))
    assert made.shape == x.shape
    torch.testing.assert_close(made, -x)
    assert all(call[1:] == (3, 12, 16) for call in model.calls)
    assert torch.equal(whole(model, x), -x)


def test_tiles_blend_without_a_seam():
    """Where neighbouring tiles disagree, the value goes over from one to the other in small steps."""

    class Disagreeing(Doubled):
        def translate_tensor(self, a, **settings):
            # Each tile is of one colour: its number in the row.
            n = len(a)
            return torch.linspace(-1, 1, n).view(n, 1, 1, 1, 1).expand(n, 1, *a.shape[1:])

    made = tiled(Disagreeing(), torch.zeros(3, 12, 40), (12, 16))
    assert made.min() == -1 and made.max() == 1
    assert (made[:, :, 1:] - made[:, :, :-1]).abs().max() < 0.5
    assert starts(40, 16) == [0, 12, 24] and all(
        b - a <= 12 for a, b in zip(starts(99, 16), starts(99, 16)[1:], strict=False)
    )


def test_a_file_a_folder_and_large_pictures(runs, tmp_path, capsys):
    picture(tmp_path / "in/small.png", 12, 16)
    picture(tmp_path / "in/deep/large.jpg", 40, 33)
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    assert main(["translate", str(runs["both"]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "wrote 2 files" in said and "note: broken left out" in said
    with Image.open(tmp_path / "out/small.png") as image:
        own = np.asarray(image)
    with Image.open(tmp_path / "out/deep/large.png") as image:
        assert image.size == (33, 40)
    model = twofold.load(runs["both"])
    with Image.open(tmp_path / "in/small.png") as image:
        wanted = model.translate(np.asarray(image)[None])[0]
    assert np.array_equal(own, wanted)
    back = translate(model, tmp_path / "in/small.png", out=tmp_path / "back", direction="back")[0]
    with Image.open(back[0]) as image, Image.open(tmp_path / "in/small.png") as given:
        assert np.array_equal(np.asarray(image), model.translate(np.asarray(given)[None], direction="back")[0])
    fitted = translate(model, tmp_path / "in/deep/large.jpg", out=tmp_path / "fit", fit=True)[0]
    with Image.open(fitted[0]) as image:
        assert image.size == (16, 19)


def test_variants_and_styles(runs, tmp_path, capsys):
    grey = picture(tmp_path / "one.png", 12, 16, "L")
    command = ["translate", str(runs["styles"]), str(grey), "--out", str(tmp_path / "out")]
    assert main([*command, "--variants", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out.startswith("wrote 3 files")
    images = []
    for k in (1, 2, 3):
        with Image.open(tmp_path / f"out/one-{k}.png") as image:
            images.append(np.asarray(image))
    assert not np.array_equal(images[0], images[1])
    model = twofold.load(runs["styles"])
    with Image.open(grey) as image:
        a = np.asarray(image)[None]
    assert np.array_equal(np.stack(images), model.translate(a, variants=3, seed=5)[0])
    style = picture(tmp_path / "style.png", 12, 16)
    assert main([*command, "--style", str(style)]) == 0
    with Image.open(style) as image, Image.open(tmp_path / "out/one.png") as made:
        wanted = model.translate(a, style=model.style(np.asarray(image)[None]))
        assert np.array_equal(np.asarray(made), wanted[0])


def test_vectors_go_through_npy_files(runs, tmp_path):
    x = np.random.RandomState(0).randn(7, 2)
    np.save(tmp_path / "v.npy", x)
    written, _ = translate(twofold.load(runs["vectors"]), tmp_path / "v.npy", out=tmp_path / "out")
    assert np.array_equal(np.load(written[0]), twofold.load(runs["vectors"]).translate(x))


@pytest.mark.parametrize(
    ("run", "source", "options", "message"),
    [
        ("both", "nowhere", [], "there is no file or folder 'nowhere'"),
        ("both", "one.png", ["--style", "one.png"], "cannot style"),
        ("styles", "one.png", ["--direction", "back"], "cannot translate_back; it can translate, style"),
        ("styles", "one.png", ["--style", "nowhere.png"], "no file 'nowhere.png'"),
        ("styles", "one.png", ["--style", "one.png", "--variants", "2"], "give a style, or a number of variants"),
        ("both", "broken.png", [], "broken.png: not an image"),
        ("both", "twice", [], "would both be written as a.png"),
        ("vectors", "one.png", [], "give a .npy file"),
        ("both", "one.png", ["--variants", "0"], "below 1"),
    ],
)
def test_what_cannot_be_is_refused_and_writes_nothing(
    runs, tmp_path, monkeypatch, capsys, run, source, options, message
):
    monkeypatch.chdir(tmp_path)
    picture(Path("one.png"), 12, 16)
    picture(Path("twice/a.png"), 12, 16)
    picture(Path("twice/a.jpg"), 12, 16)
    Path("broken.png").write_bytes(b"no picture")
    assert main(["translate", str(runs[run]), source, "--out", "out", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("out").exists()


def test_other_models_and_a_file_as_folder_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="which is a file"):
        translate(twofold.load(runs["both"]), tmp_path, out=picture(tmp_path / "x.png", 4, 4))
    recipe = recipes.build("vae", Spec("image", (1, 8, 8)), {"latent": 2, "width": 4})[1]
    with pytest.raises(InputError, match="this model cannot translate; it can encode"):
        translate(Model(recipe, recipe.nets), tmp_path, out=tmp_path / "out")


def test_what_translators_cannot_do_is_refused_in_one_line(tmp_path):
    model = twofold.train("cyclegan", data="affine-2d", examples=64, out=tmp_path / "run", width=4, depth=1)
    with pytest.raises(InputError, match="this model gives no score; it can translate, translate_back"):
        twofold.score(model)
    with pytest.raises(InputError, match="classes cannot be used here: edges-shapes is pairs"):
        load("edges-shapes", classes=[1])
