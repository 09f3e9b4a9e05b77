"""W7: DiLoCo on a character transformer."""

from functools import partial

import numpy as np

from jaxfl.algorithms.server.diloco import diloco
from jaxfl.data import partition, text
from jaxfl.errors import InputError
from jaxfl.learn.task import language_model
from jaxfl.models.networks import Transformer
from jaxfl.world.scenario import scenario
from workloads.work import Cost, Matmul, Program, Stream, Work, dense, named

WIDTH, DEPTH, HEADS, BATCH = 64, 4, 4, 8


def w7(nodes: int, steps: int, compute: str | None = None) -> Work:
    """`steps` AdamW steps of 8 on text by author and a Nesterov step a round."""

    def build():
        try:
            known = text.shakespeare()
        except InputError:
            known = text.pydoc_topics()
        author = np.asarray(known.clients)
        sizes = np.bincount(author)
        owner = np.full(sizes.size, -1)
        owner[np.argsort(-sizes)[:nodes]] = np.arange(nodes)
        shards = partition.shards(known, owner[author])
        task = language_model(
            partial(Transformer, known.classes or 0, WIDTH, DEPTH, HEADS, length=80), known.x, compute
        )
        return Program(diloco(task, lr=1e-3, steps=steps, batch=BATCH), scenario(shards), task, known)

    return Work(named("W7", compute), nodes, None, 1, build, lambda program: _cost(program, nodes * steps))


def _cost(program: Program, count: int) -> Cost:
    """`count` AdamW steps: models and both moments are read and written. Looking up a token is no arithmetic."""
    length = program.data.x.shape[1]
    tokens, head = BATCH * length, WIDTH // HEADS
    heads = count * DEPTH * BATCH * HEADS
    layers = [dense(tokens, WIDTH, w, count * DEPTH) for w in (3 * WIDTH, WIDTH, 4 * WIDTH)]
    layers += [dense(tokens, 4 * WIDTH, WIDTH, count * DEPTH), dense(tokens, WIDTH, program.data.classes or 0, count)]
    scores = (Matmul(length, head, length, 3 * heads), Matmul(length, length, head, 3 * heads))
    state = 12.0 * program.task.dim
    return Cost((*scores, *(a for layer in layers for a in layer)), (Stream(2 * count * state, state),))
