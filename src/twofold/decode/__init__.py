"""Drawing sequences of tokens from any model that predicts the next one, with its cache: pixels, codes, text, sound.

`generate` and `stream` drive a `SequenceModel`; `Sampler` says how a token is drawn from its logits; `row_seeds` and
`uniforms` give every row a randomness of its own; `Uncached` is the reference that a cache must agree with.
"""

from twofold.decode.engine import Condition, SequenceModel, Uncached, generate, stream
from twofold.decode.noise import row_seeds, uniforms
from twofold.decode.sampler import GREEDY, Sampler

__all__ = [
    "GREEDY",
    "Condition",
    "Sampler",
    "SequenceModel",
    "Uncached",
    "generate",
    "row_seeds",
    "stream",
    "uniforms",
]
