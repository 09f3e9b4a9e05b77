"""MHD: clients distil each other's predictions on public data into a chain of heads; no parameter is ever sent.

Client i has a backbone with embedding e_i, a main head h_i^0 and auxiliary heads h_i^1 .. h_i^m. In every step, on a
private batch (x, y) and a public batch u that all clients share,

    L_i = CE(h_i^0(x), y) + nu_aux sum_k mean_u CE(softmax(target_k(u)), h_i^k(u))
          + nu_emb mean_u |unit(e_i(u)) - unit(e_j(u))|^2   (teachers j whose embedding has the same size)
    target_k(u) <- the most confident of h_j^(k-1)(u), j among the sampled teachers, and of h_i^(k-1)(u)

and a step of SGD with momentum, whose state stays with the client. Teachers are sampled from the in-neighbours and
answer with stale checkpoints. Head k thus holds what travelled k hops.

A round is `steps` local steps, and checkpoints are those of the round's start (or up to `refresh` rounds old): the
paper's period S_P is `steps * refresh`. Between two refreshes clients do not influence each other, so every client
predicts the round's public examples once and trains through the whole round alone.

Bits: one message is what one teacher says of one public batch, 32 b C m for the m heads that somebody learns from (the
last head is nobody's teacher), and 32 b E where the embedding is compared. Keeping a teacher's
checkpoint instead would cost its parameters once a refresh, and not work for a secret architecture.

Deviations: the pool holds one generation of checkpoints of all in-neighbours instead of a few of several ages; the rate
is constant unless an optax schedule is given; a Byzantine client teaches like any other.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfl.algorithms.gossip.dsgd import check_gossip
from jaxfl.core import Algorithm, Array, Env, Metric, State, n_nodes
from jaxfl.data import partition
from jaxfl.errors import InputError, require
from jaxfl.exchange import predictions
from jaxfl.exchange.codecs import PLAIN, Codec
from jaxfl.learn import distill, heads
from jaxfl.learn.groups import Group, Groups, at_groups, by_group, draw, first_rows, require_groups
from jaxfl.learn.heads import Output, outputs, widths
from jaxfl.learn.task import classification
from jaxfl.mapping.nodes import map_nodes
from jaxfl.measure.personal import personal_accuracy
from jaxfl.models import networks
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "Decentralized Learning with Multi-Headed Distillation",
    "Zhmoginov, Sandler, Miller, Kristiansen, Vladymyrov",
    "CVPR 2023",
    "https://arxiv.org/abs/2211.15774",
    number="020",
)
HEADS, SKEW, TESTED = 4, 0.3, 500
WIDTHS = (16, 8), (32, 16)  # hidden units and embedding of even and of odd nodes


def mhd(
    groups: Groups,
    codec: Codec = PLAIN,
    *,
    lr: float | Array | Callable = 0.05,
    momentum: float | Array = 0.0,
    nu_aux: float | Array = 3.0,
    nu_emb: float | Array | None = None,
    teachers: int = 1,
    steps: int = 50,
    refresh: int = 1,
    batch: int | None = 32,
    public_batch: int = 32,
    lessons: Callable = distill.chain,
    choose: Callable | None = None,
    own_head: bool = True,
) -> Algorithm:
    """Multi-headed distillation between `groups` of architectures, tasks made by `heads.multi_head`.

    Data are `distill.Public`, the model one row a group (`groups.draw`), the answer rows `[n_g, d_g]` a group. Logs
    `loss` (private), `aux_loss`, `gradients`, bits.

    Args:
        groups: architectures and who has them; all have the same heads and classes.
        codec: how predictions are coded; it remembers nothing.
        lr: rate, or an optax schedule of the step.
        momentum: of the heavy ball. The paper's 0.9 needs a smaller rate on small networks without normalisation.
        nu_aux: weight of the distilled heads; 0 is isolated training and sends nothing.
        nu_emb: weight of the embeddings' distance; None leaves them out.
        teachers: in-neighbours sampled each step.
        steps: local steps a round.
        refresh: rounds between two checkpoints.
        batch: private samples a step; None is the whole shard.
        public_batch: public examples a step.
        lessons: which head learns from which, from the number of heads: `distill.chain`, `same_level`, `main_head`.
        choose: the selector of targets, by default `distill.most_confident()`.
        own_head: the client's own head is a candidate too.

    Raises:
        InputError: without a graph or public examples, if the cohort is not all nodes, or for a number out of range.
    """
    require_groups(groups)
    require("lr", lr, above=0)
    require("momentum", momentum, least=0, below=1)
    require("nu_aux", nu_aux, least=0)
    require("nu_emb", nu_emb, least=0, none=True)
    for name, value in (("teachers", teachers), ("steps", steps), ("refresh", refresh), ("public_batch", public_batch)):
        require(name, value, least=1, whole=True)
    tx = optax.sgd(lr, momentum=momentum)
    arguments = {"steps": steps, "batch": batch, "lessons": lessons, "choose": choose, "own_head": own_head}
    train = at_groups(groups, lambda task: distill.distilled_sgd(task, tx, **arguments))

    def init(key, env, x):
        _check(env, groups, teachers)
        rows = first_rows(groups, x)
        first = lambda g, r: map_nodes(lambda _, row: tx.init(g.task.unravel(row)), (), r)
        opt = tuple(first(g, r) for g, r in zip(groups, rows, strict=True))
        return State((), {"rows": rows, "opt": opt, "old": jax.tree.map(jnp.copy, rows) if refresh > 1 else ()})

    def round(key, env, s):
        rows, old = s.nodes["rows"], s.nodes["rows"]
        if refresh > 1:
            old = jax.tree.map(lambda a, b: jnp.where(env.t % refresh == 0, a, b), rows, s.nodes["old"])
        images, index = predictions.public_batches(key, env.data.public, steps, public_batch)
        said = outputs(groups, old, images)
        shown = distill.taught(lessons(said.logits.shape[1]))
        logits, bits = predictions.send(key, codec, said.logits[:, jnp.array(shown, int)])
        who, live = predictions.draw_teachers(key, env.graph, teachers, steps)  # [n, steps, teachers]
        heard = live if env.cohort.steps is None else live & (jnp.arange(steps) < env.cohort.steps[:, None])[..., None]
        messages = [(heard & (nu_aux > 0), public_batch * bits)]
        shared = {"images": images, "index": index, "nu_aux": jnp.asarray(nu_aux)}
        alike = None
        if nu_emb is not None:
            size = widths(groups, images)
            alike = size[:, None] == size  # [n, n]
            embedding, bits = predictions.send(key, codec, said.embedding)
            same = heard & alike[jnp.arange(n_nodes(env))[:, None, None], who] & (nu_emb > 0)
            messages.append((same, public_batch * bits * size / said.embedding.shape[-1]))
            shared |= {"nu_emb": jnp.asarray(nu_emb)}
            said = said._replace(embedding=embedding)
        given = {"teachers": who, "live": live, "alike": alike}
        own = {name: by_group(groups, v) for name, v in given.items() if v is not None}
        shared["said"] = Output(logits, said.embedding)
        new = train(key, env, rows, shared, memory={"state": s.nodes["opt"]}, **own)
        log = new.log | predictions.cost(env, who, *messages) | {"aux_loss": new.each["aux_loss"].mean()}
        nodes = {"rows": new.rows, "opt": new.memory["state"], "old": old if refresh > 1 else ()}
        return State((), nodes), log

    return Algorithm(init, round, read=lambda s: s.nodes["rows"])


def _check(env: Env, groups: Groups, teachers: int) -> None:
    require_groups(groups, n_nodes(env))
    check_gossip(env)
    if env.graph is None:
        raise InputError("topology is None, but distillation needs a graph of who teaches whom.")
    if not isinstance(env.data, distill.Public):
        raise InputError(f"data is {type(env.data).__name__}, but distillation needs distill.Public(private, public).")
    if teachers > env.graph.nbr.shape[1]:
        raise InputError(f"teachers is {teachers}, but the graph has at most {env.graph.nbr.shape[1]} in-neighbours.")


def mutual_distillation(groups: Groups, codec: Codec = PLAIN, **kw) -> Algorithm:
    """Main heads learn from the sampled teachers' main heads, with no chain and no own candidate; `kw` as in `mhd`.

    The single-head distillation that MHD is compared with, in the spirit of FedMD (Li and Wang, 2019), without its
    server and its consensus.
    """
    return mhd(groups, codec, lessons=distill.main_head, own_head=False, **kw)


def _public(given: Given) -> Example:
    """Even and odd nodes with narrow and wide networks, and a tenth of the data as public examples without labels."""
    known, n = given.dataset, given.nodes
    known.require_labels("these heads classify")
    public, private = distill.hold_out(known, len(known.x) // 10, given.seed)
    shards = partition.dirichlet(private, n, SKEW, given.seed)
    x, features = known.x[:1], math.prod(known.x.shape[1:])
    modules = [partial(networks.MLP, (features, *hidden)) for hidden in WIDTHS]
    tasks = [heads.multi_head(classification(module, x), x, known.classes, HEADS) for module in modules]
    groups = tuple(Group(task, tuple(range(n))[i::2]) for i, task in enumerate(tasks) if n > i)
    counts = partition.label_histogram(shards, known.classes)
    test_x, test_y = known.tested(TESTED)
    measured = personal_accuracy(groups, test_x, test_y, counts)
    data = distill.Public(shards, jnp.asarray(public))

    def measure(arrays, answer):  # `accuracy`: of the main head, on the labels a node has
        scores = measured.measure(arrays, answer)
        return scores | {"accuracy": scores["private_0"]}

    return Example((groups,), data, model=draw(groups), metric=Metric(measure, measured.arrays))


SYSTEMS = {
    "mhd": System(mhd, PAPER, _public),
    "mutual_distillation": System(mutual_distillation, PAPER, _public),
}
