"""Codecs: what arrives, what is remembered and what it costs, by hand and by their theorems."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.errors import InputError
from jaxfl.exchange import codecs
from jaxfl.exchange.codecs import error_feedback, half, plain, qsgd, quantize, random_k, sign, top_k

KEY = jax.random.key(3)
number = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
quick = settings(max_examples=12, deadline=None)


@functools.cache
def program(codec):
    """One program a codec and shape."""
    return jax.jit(codec.send)


def send(codec, message, key=KEY, memory=None):
    x = jnp.asarray(message, jnp.float32)
    sent, memory, bits = program(codec)(key, codec.init(x) if memory is None else memory, x)
    return np.asarray(sent, np.float64), memory, float(bits)


def draws(codec, message, count=4000):
    """What arrives with many keys, `[count, m]`."""
    many = jax.jit(jax.vmap(lambda k, x: codec.send(k, codec.init(x), x)[0], in_axes=(0, None)))
    return np.asarray(many(jax.random.split(KEY, count), jnp.asarray(message, jnp.float32)), np.float64)


def test_top_k_by_hand():
    sent, _, bits = send(top_k(2), [1.0, -5.0, 0.5, 3.0, 0.0])
    np.testing.assert_array_equal(sent, [0, -5, 0, 3, 0])
    assert bits == 2 * 32 + 2 * 3  # five places are told apart by three bits
    sent, _, bits = send(top_k(0.4), [1.0, -5.0, 0.5, 3.0, 0.0])
    np.testing.assert_array_equal(sent, [0, -5, 0, 3, 0])
    assert send(top_k(0.01), np.ones(8))[2] == 32 + 3  # one at least
    assert send(top_k(1), np.ones(1))[2] == 32  # nothing to point at


def test_kept_values_go_through_another_codec():
    sent, _, bits = send(top_k(2, quantize(4)), [1.0, -7.0, 0.5, 3.2, 0.0])
    np.testing.assert_allclose(sent, [0, -7, 0, 3, 0], atol=1e-6)
    assert bits == 2 * 4 + 32 + 2 * 3


TOP = {k: top_k(k) for k in range(1, 5)}


@given(st.lists(number, min_size=6, max_size=6), st.integers(1, 4))
@quick
def test_top_k_is_the_best_of_all_choices_of_k(x, k):
    x = np.asarray(x, np.float32).astype(np.float64)
    sent, *_ = send(TOP[k], x)
    best = min((x**2).sum() - (x[list(chosen)] ** 2).sum() for chosen in itertools.combinations(range(len(x)), k))
    lost = ((sent - x) ** 2).sum()
    assert lost <= best * (1 + 1e-6) + 1e-6
    assert lost <= (1 - k / len(x)) * (x**2).sum() * (1 + 1e-6)


def test_random_k_is_unbiased_and_its_places_cost_nothing():
    x = np.array([3.0, -1.0, 0.5, 2.0, 0.0, -4.0])
    seen = draws(random_k(2), x)
    assert ((seen != 0).sum(1) <= 2).all()
    np.testing.assert_allclose(seen.mean(0), x, atol=5 * 4 * 3 / math.sqrt(4000))
    assert send(random_k(2), x)[2] == 64
    np.testing.assert_allclose(send(random_k(6), x)[0], x, rtol=1e-6)
    contracting = draws(random_k(0.5, unbiased=False), x)
    np.testing.assert_allclose(((contracting - x) ** 2).sum(1).mean(), 0.5 * (x**2).sum(), rtol=0.05)
    assert send(random_k(3, quantize(2)), x)[2] == 3 * 2 + 32


def test_quantize_by_hand():
    x = [7.0, -3.4, 0.6, 0.4, -0.2]
    sent, _, bits = send(quantize(4), x)
    np.testing.assert_allclose(sent, [7, -3, 1, 0, 0], atol=1e-6)
    assert bits == 5 * 4 + 32
    sent, _, bits = send(quantize(4, block=3), x)  # scales 1 and 0.4 / 7
    np.testing.assert_allclose(sent, [7, -3, 1, 0.4, -0.2], atol=0.03)
    assert bits == 5 * 4 + 2 * 32
    assert send(quantize(8, scale_bits=0), x)[2] == 40
    assert send(quantize(4, block=100), x)[2] == 5 * 4 + 32
    np.testing.assert_array_equal(send(quantize(4, block=2), np.zeros(5))[0], np.zeros(5))


@functools.cache
def rounded(block, stochastic):
    """Bits are traced, as numbers of one program."""
    return jax.jit(lambda bits, x: quantize(bits, block=block, stochastic=stochastic).send(KEY, (), x)[0])


@given(st.lists(number, min_size=13, max_size=13), st.integers(2, 8), st.sampled_from([1, 4]), st.booleans())
@quick
def test_quantized_numbers_are_few_and_near(x, bits, block, stochastic):
    x = np.asarray(x, np.float32)
    sent = np.asarray(rounded(block, stochastic)(bits, x), np.float64)
    levels = 2 ** (bits - 1) - 1
    for start in range(0, len(x), block):
        part, got = x[start : start + block], sent[start : start + block]
        scale = np.abs(part).max() / levels
        assert (np.abs(got - part) <= scale * (1.0 if stochastic else 0.5) * (1 + 1e-4) + 1e-12).all()
        if scale > 0:
            whole = got / scale
            np.testing.assert_allclose(whole, np.round(whole), atol=1e-3)
            assert np.abs(whole).max() <= levels * (1 + 1e-5)


def test_stochastic_rounding_is_unbiased():
    x = np.array([7.0, 0.3, -2.6, 0.0, 4.5])
    np.testing.assert_allclose(draws(quantize(4, stochastic=True), x).mean(0), x, atol=0.5 / math.sqrt(4000) * 5)
    assert np.abs(draws(quantize(4), x, 50).mean(0) - x).max() > 0.25


def test_bits_may_be_traced():
    got = jax.jit(lambda b: quantize(b).send(KEY, (), jnp.arange(4.0))[1:])(jnp.int32(5))
    assert float(got[1]) == 4 * 5 + 32


def omega(n):
    """Elias' omega code as a string, from its definition."""
    code = "0"
    while n > 1:
        code = f"{n:b}" + code
        n = len(f"{n:b}") - 1
    return code


def test_lengths_of_the_omega_code():
    some = [*range(1, 300), 2**15 - 1, 2**15, 2**16, 2**30, 2**31 - 1]
    assert codecs.elias_bits(jnp.asarray(some, jnp.int32)).tolist() == [len(omega(n)) for n in some]


@pytest.mark.parametrize(("levels", "block"), [(1, None), (4, None), (4, 3)])
def test_qsgd_is_unbiased_with_the_variance_and_bits_of_the_paper(levels, block):
    x = np.array([3.0, -1.0, 0.5, 2.0, 0.0, -4.0, 0.1])
    parts = [x[i : i + (block or 7)] for i in range(0, 7, block or 7)]
    seen = draws(qsgd(levels, block=block), x)
    bound = sum(min(len(p) / levels**2, math.sqrt(len(p)) / levels) * (p**2).sum() for p in parts)
    assert ((seen - x) ** 2).sum(1).mean() <= bound
    np.testing.assert_allclose(seen.mean(0), x, atol=5 * math.sqrt(bound / 4000))
    sent, _, bits = send(qsgd(levels, block=block), x)
    norms = np.concatenate([np.full(len(p), np.linalg.norm(p)) for p in parts])
    level = np.round(np.abs(sent) / norms * levels).astype(int)
    assert bits == 32 * len(parts) + sum(len(omega(1 + v)) + (v > 0) for v in level)
    np.testing.assert_array_equal(send(qsgd(levels, block=block), np.zeros(7))[0], np.zeros(7))


def test_sign_by_hand_and_its_contraction():
    x = np.array([3.0, -1.0, 0.0, 2.0])
    sent, _, bits = send(sign(), x)
    np.testing.assert_allclose(sent, 1.5 * np.array([1, -1, 1, 1]))
    assert bits == 4 + 32
    np.testing.assert_allclose(((x - sent) ** 2).sum(), (1 - 36 / (4 * 14)) * 14, rtol=1e-6)
    sent, _, bits = send(sign(scaled=False), x)
    np.testing.assert_array_equal(sent, [1, -1, 1, 1])
    assert bits == 4


LOSSY = {
    "top-k": top_k(3),
    "random-k": random_k(3, unbiased=False),
    "int4": quantize(4),
    "int2, random": quantize(2, stochastic=True),
    "top-k of int4": top_k(5, quantize(4)),
    "sign": sign(),
    "half": half(),
    "nothing": plain(),
}


@pytest.mark.parametrize("name", LOSSY)
def test_error_feedback_loses_nothing(name):
    """What arrived and what is remembered sum to what was given."""
    codec = error_feedback(LOSSY[name])
    messages = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    memory, total = codec.init(jnp.zeros(12)), np.zeros(12)
    step = jax.jit(codec.send)
    for t, x in enumerate(messages):
        sent, memory, bits = step(jax.random.fold_in(KEY, t), memory, x)
        total += np.asarray(sent, np.float64)
    np.testing.assert_allclose(total + np.asarray(memory[0]), messages.sum(0, dtype=np.float64), atol=2e-5)
    assert float(bits) == send(LOSSY[name], messages[0])[2]
    if name == "nothing":
        assert not np.asarray(memory[0]).any()


def test_feedback_repairs_a_bias():
    """Messages whose small entries nearest rounding would never send."""
    x = np.array([10.0, 0.3, -0.4, 0.2])
    without = send(quantize(3), x)[0]
    np.testing.assert_array_equal(without[1:], 0)
    codec, total = error_feedback(quantize(3)), 0
    memory = codec.init(jnp.zeros(4))
    for _ in range(200):
        sent, memory, _ = send(codec, x, memory=memory)
        total = total + sent
    np.testing.assert_allclose(total / 200, x, atol=10 / 3 / 200)


@pytest.mark.parametrize(
    "codec",
    [
        *(quantize(4), quantize(8, block=7), quantize(8, stochastic=True), qsgd(4), qsgd(3, block=7), sign(), half()),
        *(top_k(0.2, quantize(4)), random_k(4), error_feedback(sign()), error_feedback(quantize(4))),
    ],
)
def test_what_arrives_scales_with_the_message_to_both_ends_of_float32(codec):
    """Beyond 1e19 squares are infinite, below 1e-22 they are 0."""
    x = np.random.default_rng(0).normal(size=40).astype(np.float32)
    x += np.copysign(0.1, x)
    want, _, bits = send(codec, x)
    for power in (-110, -90, -75, 60, 64, 90, 122):
        got, _, spent = send(codec, np.ldexp(x, power))
        np.testing.assert_allclose(np.ldexp(got, -power), want, rtol=1e-5, err_msg=str(power))
        assert spent == bits


def test_the_scale_of_sign_does_not_overflow():
    np.testing.assert_allclose(send(sign(), np.full(5000, 3e37))[0], 3e37, rtol=1e-5)


@pytest.mark.parametrize("codec", [top_k(3), quantize(4), random_k(3), qsgd(3), sign(), error_feedback(sign())])
def test_a_diverged_message_arrives_as_such(codec):
    assert not np.isfinite(send(codec, [1.0, jnp.nan, 2.0])[0]).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: quantize(1), "bits is 1"),
        (lambda: quantize(4, block=0), "block is 0"),
        (lambda: quantize(4, scale_bits=-1), "scale_bits is -1"),
        (lambda: qsgd(0), "levels is 0"),
        (lambda: qsgd(2, block=0), "block is 0"),
        (lambda: top_k(0), "k is 0"),
        (lambda: random_k(0.0), "k is 0.0"),
        (lambda: send(top_k(9), np.ones(4)), "k is 9, but a message has 4"),
        (lambda: send(random_k(1.5), np.ones(4)), "k is 1.5, but a message has 4"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make()
