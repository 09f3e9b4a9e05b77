"""Models of a user by name: a flax module as it is, or a function that makes one."""

import dataclasses
from functools import partial

import pytest
from flax import linen, nnx

import jaxfl as fl
from jaxfl import plugins
from jaxfl.errors import InputError
from jaxfl.options.build import prepare
from jaxfl.options.config import Setup


class Small(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


class Linear(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(10)(x)


def task_with(monkeypatch, thing):
    monkeypatch.setitem(plugins._registered["model"], "mine", thing)
    setup = dataclasses.replace(Setup(nodes=4, data="digits", rounds=1, seeds=1), model="mine")
    return prepare(setup, ["fedavg"]).task


@pytest.mark.parametrize(
    "thing", [Small, partial(Small), Linear(), lambda shape, outputs: partial(fl.networks.MLP, (*shape, outputs))]
)
def test_a_module_or_what_makes_one(thing, monkeypatch):
    assert task_with(monkeypatch, thing).dim == 650


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda: Linear(), "model 'mine' must be a flax module, or a function of the shape"),
        (Linear, "module is the class Linear, must be an instance"),
    ],
)
def test_what_is_neither_gets_one_sentence(thing, words, monkeypatch):
    with pytest.raises(InputError, match=words):
        task_with(monkeypatch, thing)
