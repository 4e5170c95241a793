"""Feature extractors for distances between sets: a classifier trained on the spot, raw pixels, or the standard
Inception network.

A distance is only as good as the features it is measured on, so an extractor's name, with its own accuracy, is part of
every figure's name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofold.data import Batches, Data, ordered
from twofold.errors import InputError, unknown
from twofold.game import Game, Phase, Player, State, Term, begin, step
from twofold.nets.build import build_encoder
from twofold.trained_once import train_once

EXTRACTORS = ("classifier", "pixels", "inception")
FEATURES = 128
"""Units of the classifier's last hidden layer, on which distances are measured."""
WIDTH = 16
BATCH = 128
PASSES, LEAST_EXAMPLES, MOST_EXAMPLES = 20, 40_000, 300_000
"""Training of the classifier: passes over the data, within these bounds of examples seen."""
CLASSIFIER_VERSION = 1
"""Counted up when the classifier or its training changes, so that a stored one is not mistaken for it."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d"
"""The first digits of the file's SHA-256, as its name has them."""
_BLOCK = 256


@dataclass(frozen=True)
class Extractor:
    """Features of examples as models see them."""

    label: str
    """In names of figures: "classifier_acc98.1", "pixels"; empty for Inception, whose metrics have their own."""
    features: Callable[[Tensor], Tensor]
    """(n, …) → (n, d)."""
    probabilities: Callable[[Tensor], Tensor] | None
    """(n, …) → (n, classes); None for an extractor that does not classify."""
    protocol: Mapping[str, Any] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where trained classifiers and downloaded weights are kept: $TWOFOLD_CACHE, or `twofold` in the user's cache."""
    if chosen := os.environ.get("TWOFOLD_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twofold"


def build_extractor(kind: str | None, data: Data, *, download: bool = False) -> Extractor:
    """The extractor called `kind` for this data; None: a classifier for labelled images, otherwise the values
    themselves.

    Raises `InputError` if the data cannot have it or its weights are not there.
    """
    if kind is None:
        kind = "classifier" if unlabelled(data) is None else "pixels"
    if kind == "pixels":
        return Extractor("pixels", lambda x: x.flatten(1), None, {"extractor": "the values themselves"})
    if kind == "classifier":
        if reason := unlabelled(data):
            raise InputError(f"{reason}; use --features pixels")
        return trained_classifier(data)
    if kind == "inception":
        return inception(data, download=download)
    raise unknown("features", kind, EXTRACTORS)


def unlabelled(data: Data) -> str | None:
    """Why no classifier can be trained on this data, or None if one can."""
    if data.spec.kind != "image":
        return f"{data.name} holds vectors, which are compared as they are"
    if data.train.y is None or (data.spec.classes or 0) < 2:
        return f"{data.name} has no labels to train a classifier on"
    return None


# A classifier trained on the spot.


def trained_classifier(data: Data) -> Extractor:
    """A small convolutional classifier of this data's labels, trained now or taken from the cache.

    Its features are the linear output of its last hidden layer. Its accuracy on the test split (training split, if
    there is none) and a digest of its weights are in the protocol.
    """
    spec = data.spec
    key = hashlib.sha256(f"{CLASSIFIER_VERSION} {data.fingerprint} {json.dumps(spec.to_json())}".encode()).hexdigest()
    path = cache_folder() / f"classifier-{key[:32]}.safetensors"
    net = _classifier(data)
    train_once(net, partial(_train_classifier, net, data), path, what="classifier")
    net.eval()
    accuracy = 100 * _accuracy(net, data)

    def run(x: Tensor, *, probabilities: bool) -> Tensor:
        with torch.no_grad():
            parts = [net.forward_with_features(block, layer=net.blocks) for block in x.split(_BLOCK)]
        logits, features = (torch.cat(both) for both in zip(*parts, strict=True))
        return logits.softmax(1) if probabilities else features

    digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in net.state_dict().values())).hexdigest()
    protocol = {
        "extractor": f"classifier of {data.name}, {FEATURES} features, none of it augmented",
        "extractor_accuracy_percent": round(accuracy, 2),
        "extractor_sha256": digest[:16],
    }
    label = f"classifier_acc{accuracy:.1f}"
    return Extractor(label, partial(run, probabilities=False), partial(run, probabilities=True), protocol)


def _classifier(data: Data) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder(data.spec, data.spec.classes or 2, width=WIDTH, hidden=FEATURES, norm="batch")


def _train_classifier(net: nn.Module, data: Data) -> None:
    """Adam on the cross-entropy, the rate falling to 0 along half a cosine."""
    examples = min(MOST_EXAMPLES, max(LEAST_EXAMPLES, PASSES * len(data.train)))
    batches = Batches(data.train, data.spec, batch_size=min(BATCH, len(data.train)), seed=0)

    def rate(state: State) -> float:
        return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, state.examples / examples)))))

    def cross_entropy(state: State) -> Tensor:
        return nn.functional.cross_entropy(state["logits"], state.batch["y"])

    player = Player(net, partial(torch.optim.Adam, lr=2e-3), lr_factor=rate)
    phase = Phase(
        "classify",
        lambda state: {"logits": state.nets["classifier"](state.batch["x"])},
        [Term("cross_entropy", cross_entropy, to={"classifier": 1.0})],
    )
    game = Game({"classifier": player}, [phase])
    progress = begin(game, seed=0)
    while progress.examples < examples:
        step(game, progress, lambda: batches.draw(progress.examples))


def _accuracy(net: nn.Module, data: Data) -> float:
    split = data.test or data.train
    with torch.no_grad():
        right = sum(int((net(batch["x"]).argmax(1) == batch["y"]).sum()) for batch in ordered(split, data.spec, _BLOCK))
    return right / len(split)


# The standard Inception network.


def inception(data: Data, *, download: bool = False) -> Extractor:
    """pool3 (2,048 features) and the 1,008 logits without bias of the Inception network that FID and Inception Score
    are defined on, through torch-fidelity. Images are resized as TensorFlow 1 did (bilinear, to 299).

    The weights come from the file named by $TWOFOLD_INCEPTION, from the cache, or, with `download`, from their
    publisher; the file is used only if its checksum is right.
    """
    if data.spec.kind != "image" or data.spec.shape[0] not in (1, 3):
        raise InputError(
            f"Inception looks at grey or RGB images; {data.name} is {data.spec.kind}s of {data.spec.shape}"
        )
    if find_spec("torch_fidelity") is None:
        raise InputError("Inception needs torch-fidelity: pip install 'twofold[metrics]'; or use --features classifier")
    path = inception_weights(download=download)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch fails with a RuntimeError
        raise InputError(f"torch-fidelity cannot be imported here: {' '.join(str(error).split())}") from None
    net = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )

    def run(x: Tensor, *, probabilities: bool) -> Tensor:
        out = []
        with torch.no_grad():
            for block in x.split(64):
                pixels = ((block.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
                features, logits = net(pixels)
                out.append(logits.softmax(1) if probabilities else features)
        return torch.cat(out)

    protocol = {"extractor": "Inception 2015-12-05, pool3", "resize": "bilinear as TensorFlow 1, to 299"}
    return Extractor("", partial(run, probabilities=False), partial(run, probabilities=True), protocol)


def inception_weights(*, download: bool = False) -> Path:
    """The file of weights, its checksum verified. Raises `InputError` if it is not there, saying how to get it."""
    named = os.environ.get("TWOFOLD_INCEPTION")
    path = Path(named).expanduser() if named else cache_folder() / INCEPTION_URL.rpartition("/")[2]
    if not path.is_file():
        if named:
            raise InputError(f"TWOFOLD_INCEPTION names {named!r}, which is not a file")
        if not download:
            raise InputError(
                "the Inception weights are not here (95 MB): let them be downloaded with --download, or name the file "
                "weights-inception-2015-12-05-6726825d.pth in TWOFOLD_INCEPTION; or use --features classifier"
            )
        _download(path)
    # The file is a pickle, which could run code: nothing but the published one is opened.
    if hashlib.sha256(path.read_bytes()).hexdigest()[: len(INCEPTION_SHA256)] != INCEPTION_SHA256:
        raise InputError(f"{path} is not the published file of Inception weights: its checksum is another")
    return path


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_SHA256, progress=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise InputError(
            f"the Inception weights could not be downloaded ({' '.join(str(error).split())}); get "
            f"{INCEPTION_URL.rpartition('/')[2]} on another machine and name it in TWOFOLD_INCEPTION"
        ) from None
