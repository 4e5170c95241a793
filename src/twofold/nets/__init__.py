"""Networks that size themselves from the data: fully connected and convolutional, with or without labels."""

from twofold.nets.build import Discriminator, MLPDecoder, build_decoder, build_discriminator, build_encoder
from twofold.nets.conv import ConvDecoder, ConvEncoder, pyramid
from twofold.nets.init import dcgan_init, xavier_init
from twofold.nets.mlp import MLP
from twofold.nets.norm import call_together, mixes_examples

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "Discriminator",
    "MLPDecoder",
    "build_decoder",
    "build_discriminator",
    "build_encoder",
    "call_together",
    "dcgan_init",
    "mixes_examples",
    "pyramid",
    "xavier_init",
]
