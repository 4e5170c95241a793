"""The decoding engine: what a cache must agree with, whose tokens depend on what, samplers, windows, prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from twofold.decode import GREEDY, Sampler, Uncached, generate, row_seeds, stream, uniforms
from twofold.decode.noise import uniforms_from
from twofold.errors import InputError
from twofold.nets.labels import LabelEmbedding, drop_labels
from twofold.nets.layers import Projection
from twofold.nets.pixelcnn import PixelCNN
from twofold.nets.recurrent import RecurrentModel
from twofold.nets.transformer import GPT

Y = torch.tensor([0, 1, 2, 0, 1])
ROWS = len(Y)


def seeds(n: int = ROWS, seed: int = 0) -> torch.Tensor:
    return row_seeds(n, generator=torch.Generator().manual_seed(seed))


def scattered(net: nn.Module) -> nn.Module:
    """Weights large enough that tokens depend strongly on one another and on the label."""
    generator = torch.Generator().manual_seed(1)
    for weight in net.parameters():
        nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.3, generator=generator)
    return net.eval()


def gpt(classes: int | None = 3) -> GPT:
    return scattered(GPT(11, 8, width=16, layers=3, heads=2, classes=classes))


def lstm() -> RecurrentModel:
    return scattered(RecurrentModel(11, width=16, layers=2, classes=3))


def binary_pixelcnn() -> PixelCNN:
    return scattered(PixelCNN(1, 5, 6, levels=2, width=8, layers=3, first_kernel=5, classes=3))


def full_pixelcnn() -> PixelCNN:
    """Channels, attention, codes, and every kind of condition."""
    net = PixelCNN(
        2, 4, 5, levels=5, width=8, layers=4, kernel=5, attention_every=2, heads=2, embedding=3, classes=3, vector=4,
        map_channels=2,
    )  # fmt: skip
    return scattered(net)


def condition_of(net) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    condition = {"y": Y}
    if getattr(net, "vector", None):
        condition["vector"] = torch.randn(ROWS, net.vector, generator=generator)
    if getattr(net, "map_channels", None):
        condition["map"] = torch.randn(ROWS, net.map_channels, *net.shape[1:], generator=generator)
    return condition


MODELS = {
    "gpt": (gpt, 30),  # beyond its window of 8
    "lstm": (lstm, 20),
    "pixelcnn": (binary_pixelcnn, 30),
    "pixelcnn with everything": (full_pixelcnn, 40),
}


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("name", MODELS)
def test_cached_tokens_are_the_uncached_ones(name, guidance):
    make, length = MODELS[name]
    net = make()
    options = {"seeds": seeds(), "condition": condition_of(net), "guidance": guidance}
    cached = generate(net, length, **options)
    assert torch.equal(cached, generate(Uncached(net), length, **options))
    assert cached.shape == (ROWS, length) and len(cached.unique()) > 1
    other = generate(net, length, **{**options, "seeds": seeds(seed=1)})
    assert not torch.equal(cached, other)


@pytest.mark.parametrize("name", MODELS)
def test_step_by_step_logits_are_those_of_the_whole_pass(name):
    """In float64, and for tokens fed one at a time and several at once."""
    make, length = MODELS[name]
    net = make().double()
    length = min(length, net.window or length)
    condition = {k: v.double() if v.is_floating_point() else v for k, v in condition_of(net).items()}
    tokens = torch.randint(net.vocabulary, (ROWS, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = net(tokens, condition)
        for cuts in (range(length), [0, 1, 3, length // 2, length - 1]):
            cache, fed = net.start(ROWS, condition), 0
            for place in cuts:
                logits = net.step(tokens[:, fed:place], cache)
                fed = place
                torch.testing.assert_close(logits, expected[:, place], rtol=1e-10, atol=1e-10)
        assert expected.std() > 0.1


def test_a_stale_cache_would_be_noticed():
    """The negative control of the two tests above: a cache that forgets one place gives other tokens."""
    net = gpt()

    class Forgetful(Uncached):
        def step(self, tokens, cache):
            logits = super().step(tokens, cache)
            cache.tokens[:, :1] = 0
            return logits

    options = {"seeds": seeds(), "condition": {"y": Y}}
    assert not torch.equal(generate(net, 30, **options), generate(Forgetful(net), 30, **options))


@pytest.mark.parametrize("hop", [1, 3, 8, None])
def test_beyond_the_window_tokens_follow_from_the_last_ones(hop):
    net = gpt()
    options = {"seeds": seeds(), "condition": {"y": Y}, "hop": hop}
    tokens = generate(net, 40, **options)
    assert torch.equal(tokens, generate(Uncached(net), 40, **options))
    if hop == 1:  # the classic crop: each token from the window - 1 tokens before it
        greedy = generate(net, 40, **options, sampler=GREEDY)
        with torch.no_grad():
            for place in range(8, 40):
                crop = torch.cat([greedy[:, place - 7 : place], greedy[:, :1]], dim=1)
                assert torch.equal(net(crop, {"y": Y})[:, -1].argmax(1), greedy[:, place])


class Counting:
    """A model that counts its starts, its rows and the tokens it is fed."""

    def __init__(self, net):
        self.net, self.vocabulary, self.window, self.slides = net, net.vocabulary, net.window, net.slides
        self.rows, self.fed, self.starts = set(), 0, 0

    def start(self, rows, condition=None):
        self.starts += 1
        return self.net.start(rows, condition)

    def step(self, tokens, cache):
        self.rows.add(len(tokens))
        self.fed += tokens.shape[1]
        return self.net.step(tokens, cache)

    def null(self, condition):
        return self.net.null(condition)


def test_guidance_doubles_the_batch_only_where_it_must():
    for scale, rows in ((1.0, ROWS), (0.0, ROWS), (1.5, 2 * ROWS)):
        counting = Counting(gpt())
        generate(counting, 5, seeds=seeds(), condition={"y": Y}, guidance=scale)
        assert counting.rows == {rows}


def test_guidance_is_the_line_through_both_models():
    net = gpt()
    none = torch.full_like(Y, 3)
    options = {"seeds": seeds(), "sampler": GREEDY}
    for scale in (0.5, 3.0):
        tokens = generate(net, 8, condition={"y": Y}, guidance=scale, **options)
        with torch.no_grad():
            own, other = net(tokens, {"y": Y}), net(tokens, {"y": none})
        assert torch.equal((other + scale * (own - other)).argmax(-1), tokens)
    unconditional = generate(net, 8, condition={"y": none}, **options)
    assert torch.equal(generate(net, 8, condition={"y": Y}, guidance=0.0, **options), unconditional)


def test_work_grows_with_the_tokens_and_not_with_their_square():
    for length in (8, 16, 32, 64, 128):
        counting = Counting(gpt())
        generate(counting, length, seeds=seeds(), condition={"y": Y})
        # A window of 8 moves by 4: each token is fed once, and three more times at most as the start of a window.
        assert length - 1 <= counting.fed <= 2 * length
        assert counting.starts == 1 + max(0, math.ceil((length - 8) / 4))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_its_neighbours(name):
    make, length = MODELS[name]
    net = make()
    condition = condition_of(net)
    together = generate(net, length, seeds=seeds(), condition=condition)
    for row in (0, 3):
        alone = generate(
            net, length, seeds=seeds()[row : row + 1], condition={k: v[row : row + 1] for k, v in condition.items()}
        )
        assert torch.equal(alone[0], together[row])
    assert torch.equal(seeds(9)[:ROWS], seeds())


@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_any_lengths_in_one_batch(name):
    make, length = MODELS[name]
    net = make()
    condition = condition_of(net)
    lengths = [0, 3, length, length - 1, length // 2]
    drawn = torch.randint(net.vocabulary, (ROWS, length), generator=torch.Generator().manual_seed(2))
    prompts = [drawn[row, :n] for row, n in enumerate(lengths)]
    tokens = generate(net, length, seeds=seeds(), condition=condition, prompts=prompts)
    assert torch.equal(tokens, generate(Uncached(net), length, seeds=seeds(), condition=condition, prompts=prompts))
    for row, prompt in enumerate(prompts):
        assert torch.equal(tokens[row, : len(prompt)], prompt)
        one = {k: v[row : row + 1] for k, v in condition.items()}
        alone = generate(net, length, seeds=seeds()[row : row + 1], condition=one, prompts=prompt[None])
        assert torch.equal(alone[0], tokens[row])
    # Going on from one's own beginning gives what was drawn in one go.
    whole = generate(net, length, seeds=seeds(), condition=condition)
    again = generate(net, length, seeds=seeds(), condition=condition, prompts=whole[:, : length // 3])
    assert torch.equal(again, whole)


def test_rows_stop_on_their_own():
    net = lstm()
    free = generate(net, 60, seeds=seeds(), condition={"y": Y})
    stopped = generate(net, 60, seeds=seeds(), condition={"y": Y}, stop=4)
    ends = [int((row == 4).nonzero()[0]) for row in free]
    assert len(set(ends)) > 1 and stopped.shape[1] == max(ends) + 1
    for row, end in enumerate(ends):
        assert torch.equal(stopped[row, : end + 1], free[row, : end + 1])
        assert (stopped[row, end:] == 4).all()
    # A stop token inside a prompt stops nobody.
    prompt = torch.full((ROWS, 2), 4)
    assert len(generate(net, 6, seeds=seeds(), condition={"y": Y}, prompts=prompt, stop=4).unique()) > 1


def test_the_stream_is_what_is_generated():
    net = gpt()
    options = {"seeds": seeds(), "condition": {"y": Y}, "prompts": torch.ones(ROWS, 3, dtype=torch.int64)}
    places = stream(net, 20, **options)
    first = [next(places) for _ in range(5)]
    assert torch.is_grad_enabled()  # also while the stream is open
    assert torch.equal(torch.stack([*first, *places], dim=1), generate(net, 20, **options))


def test_what_was_drawn_may_be_trained_on():
    net = gpt()
    for tokens in (generate(net, 8, seeds=seeds()), torch.stack(list(stream(net, 8, seeds=seeds())), dim=1)):
        net(tokens).sum().backward()
    assert net.tokens.weight.grad is not None and net.tokens.weight.grad.abs().sum() > 0


# Samplers.

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.0]])


def kept(sampler: Sampler) -> list[int]:
    return sampler.logits(LOGITS).isfinite()[0].nonzero().flatten().tolist()


def test_samplers_keep_what_they_say():
    p = LOGITS.softmax(1)[0]
    assert kept(Sampler()) == [0, 1, 2, 3, 4]
    assert kept(Sampler(top_k=1)) == [0]
    assert kept(Sampler(top_k=2)) == [0, 1, 4]  # 1 and 4 are equally probable
    assert kept(Sampler(top_p=float(p[0]) - 0.01)) == [0]
    assert kept(Sampler(top_p=float(p[0]) + 0.01)) == [0, 1, 4]
    assert kept(Sampler(top_p=1.0)) == [0, 1, 2, 3, 4]
    # Composed: at a high temperature p is reached later, and k is applied before.
    assert kept(Sampler(temperature=100.0, top_p=0.7)) == [0, 1, 2, 4]
    assert kept(Sampler(temperature=100.0, top_p=0.7, top_k=4)) == [0, 1, 4]
    assert kept(Sampler(temperature=100.0, top_p=0.3, top_k=1)) == [0]
    torch.testing.assert_close(
        Sampler(temperature=0.5).logits(LOGITS).softmax(1)[0], (p**2 / (p**2).sum()), rtol=1e-5, atol=1e-6
    )


def test_draws_have_the_probabilities():
    n = 40_000
    u = uniforms(torch.arange(n), 3)
    for sampler in (Sampler(), Sampler(temperature=2.0), Sampler(top_k=2), Sampler(top_p=0.8)):
        expected = sampler.logits(LOGITS).softmax(1)[0]
        counts = torch.bincount(sampler.draw(LOGITS.expand(n, -1), u), minlength=5) / n
        assert (counts - expected).abs().max() < 0.01
        assert (counts[expected == 0] == 0).all()
    assert (GREEDY.draw(LOGITS.expand(n, -1), u) == 0).all()


def test_extreme_logits_and_numbers_draw_a_possible_token():
    top = 1 - 2.0**-23
    cases = [LOGITS, torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]), torch.tensor([[1e30, 0.0, 1e30]])]
    generator = torch.Generator().manual_seed(0)
    cases += [torch.randn(1, 1000, generator=generator) for _ in range(20)]
    for logits in cases:
        for sampler in (Sampler(), Sampler(temperature=1e-6), Sampler(top_k=3), Sampler(temperature=1e-6, top_p=0.5)):
            for u in (0.0, top):
                token = sampler.draw(logits, torch.tensor([[u]]))
                assert token < logits.shape[1] and sampler.logits(logits)[0, token].isfinite()
    assert Sampler(temperature=1e-6).draw(LOGITS, torch.tensor([[0.3]])) == 0


def test_numbers_are_uniform_and_unrelated():
    a = uniforms(torch.arange(2000), 5, 8)
    assert a.shape == (2000, 8) and a.min() >= 0 and a.max() < 1
    assert np.ptp(np.histogram(a.numpy(), bins=10, range=(0, 1))[0]) < 0.12 * a.numel() / 10
    columns = torch.cat([a, uniforms(torch.arange(2000), 6, 8)], dim=1)
    off = torch.corrcoef(columns.T) - torch.eye(16)
    assert off.abs().max() < 0.1  # between numbers of a place, and between places
    neighbours = torch.stack([uniforms(torch.arange(200), k)[:, 0] for k in range(500)])
    assert (torch.corrcoef(neighbours.T) - torch.eye(200)).abs().max() < 0.25  # between rows with adjacent seeds
    assert torch.equal(uniforms(torch.arange(2000), 5, 1), a[:, :1])


@pytest.mark.parametrize("begin", [0, 5, 63, 64, 1000])
def test_numbers_computed_ahead_are_those_of_each_place(begin):
    numbers = uniforms_from(seeds(), begin)
    for place in range(begin, begin + 130):
        assert torch.equal(next(numbers), uniforms(seeds(), place))


# Refusals, each in one line.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0"),
        ({"seeds": torch.zeros(5)}, "seeds are torch.float32"),
        ({"condition": {"y": Y[:2]}}, "condition 'y' has 2 rows and seeds 5"),
        ({"stop": 11}, "stop is 11; tokens are 0 to 10"),
        ({"hop": 9}, "hop is 9; give 1 to 8"),
        ({"prompts": torch.zeros(2, 3, dtype=torch.int64)}, "2 prompts and 5 seeds"),
        ({"prompts": torch.zeros(5, 30, dtype=torch.int64)}, "a prompt has 30 tokens; length is 20"),
        ({"prompts": torch.full((5, 3), 11)}, "outside 0 to 10"),
        ({"prompts": torch.zeros(5, 3)}, "give whole numbers"),
        ({"condition": None, "guidance": 2.0}, "guidance compares"),
        ({"condition": {"map": Y}}, "not conditioned on map; it takes y"),
        ({"condition": {"y": Y.float()}}, "y is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    given = {"length": 20, "seeds": seeds(), "condition": {"y": Y}} | options
    with pytest.raises(InputError, match=message):
        generate(gpt(), **given)


def test_what_models_and_samplers_refuse():
    net = binary_pixelcnn()
    with pytest.raises(InputError, match="length is 31; this model's places end at 30"):
        generate(net, 31, seeds=seeds(), condition={"y": Y})
    with pytest.raises(InputError, match="hop is 2, but there is no window"):
        generate(lstm(), 5, seeds=seeds(), condition={"y": Y}, hop=2)
    with pytest.raises(InputError, match="31 tokens do not fit"):
        net(torch.zeros(1, 31, dtype=torch.int64))
    with pytest.raises(InputError, match="9 tokens do not fit"):
        gpt()(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(InputError, match="condition 'vector' is missing"):
        full_pixelcnn()(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="kernel is 4"):
        PixelCNN(1, 5, 5, levels=2, kernel=4)
    with pytest.raises(InputError, match="heads must divide"):
        GPT(5, 5, width=10, heads=4)
    for name, value in (("temperature", -1.0), ("top_k", 0), ("top_p", 0.0)):
        with pytest.raises(InputError, match=f"{name} is"):
            replace(Sampler(), **{name: value})
    with pytest.raises(InputError, match="ask for at least 1 row"):
        row_seeds(0, generator=torch.Generator())


def test_labels_are_dropped_at_their_rate():
    y = torch.arange(10_000) % 3
    dropped = drop_labels(y, 3, 0.2, generator=torch.Generator().manual_seed(0))
    assert abs((dropped == 3).float().mean() - 0.2) < 0.02
    assert torch.equal(dropped[dropped < 3], y[dropped < 3])
    assert drop_labels(y, 3, 0.0) is y
    table = LabelEmbedding(3, 4)
    assert torch.equal(table(None, 2), table(torch.tensor([3, 3]), 2))


# Networks.


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_is_a_linear_map_for_one_row_and_for_many(bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, 9, bias=bias)
    torch.manual_seed(0)
    net = Projection(6, 9, bias=bias)
    assert torch.equal(net.weight.t(), linear.weight) and (net.bias is None) == (linear.bias is None)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        net, linear = net.to(dtype), linear.to(dtype)
        for shape in ((6,), (1, 6), (1, 1, 6), (3, 6), (2, 3, 6)):
            h = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
            for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
                with context:
                    torch.testing.assert_close(net(h), linear(h), rtol=0, atol=error)
    # One row teaches the weight as well.
    net = net.to(torch.float64)
    h = torch.randn(1, 6, dtype=torch.float64)
    net(h).sum().backward()
    torch.testing.assert_close(net.weight.grad, h.t().expand(6, 9))


def test_a_step_of_one_row_keeps_to_the_precision_around_it():
    net = gpt()
    options = {"seeds": seeds()[:1], "condition": {"y": Y[:1]}}
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(net, 12, **options).shape == (1, 12)
    logits = net.bfloat16().step(torch.zeros(1, 0, dtype=torch.int64), net.start(1))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_parameters_of_the_transformer_by_hand():
    vocabulary, window, width, layers = 512, 256, 256, 8
    block = 4 * width * width + 4 * width + 8 * width * width + 5 * width + 4 * width
    expected = 2 * vocabulary * width + window * width + width + layers * block + 2 * width
    assert sum(w.numel() for w in GPT(vocabulary, window).parameters()) == expected


def test_no_logit_of_the_transformer_sees_its_own_token_or_a_later_one():
    net = gpt(classes=None)
    seen = torch.zeros(8, 8, dtype=torch.bool)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        base = net(tokens)
        for place in range(8):
            changed = tokens.clone()
            changed[0, place] = 5
            seen[place] = (net(changed) - base)[0].abs().amax(1) > 1e-6
    assert torch.equal(seen, torch.ones(8, 8, dtype=torch.bool).triu(1))
