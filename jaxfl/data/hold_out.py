"""Samples on which every node is tested: a part of its own, or those of its client in the test set.

Test shards cut arrays as train shards do, but may be empty (size 0): a node without test samples has no score.
"""

import numpy as np

from jaxfl.core import Shards, constant
from jaxfl.data.cut import cut, on_device, owned
from jaxfl.data.sets import Dataset, generator
from jaxfl.errors import InputError, require


def hold_out(data: Shards, fraction: float = 0.2, seed: int = 0) -> tuple[Shards, Shards]:
    """Every node keeps a part of its own samples for its own test: `(train, test)` over the same arrays, disjoint.

    `fraction` of a node's samples, rounded to the nearest whole number, is drawn at random; at least one stays for
    training. Nodes too small for a test sample have an empty test shard, of size 0. Where nodes own the same samples
    (`resampled`) it is drawn for each sample whether all its owners train or test with it, so that nothing that is
    tested is trained anywhere, and `fraction` holds on average.

    Args:
        data: any shards.
        fraction: above 0 and below 1.
        seed: of the draw.

    Raises:
        InputError: `fraction` is out of range, or so small that no node has a test sample.
    """
    if not isinstance(data, Shards):
        raise InputError(f"data is a {type(data).__name__}, but must be Shards: deal it by a partition first.")
    require("fraction", fraction, above=0, below=1)
    generator(seed)  # looks at the seed
    rng, n = np.random.default_rng([seed, 2]), data.size.shape[0]  # another stream than the deal's
    node, sample = owned(data)
    size = np.bincount(node, minlength=n)
    if len(np.unique(sample)) == len(sample):
        order = np.lexsort((rng.random(len(node)), node))
        rank = np.empty(len(node), int)
        rank[order] = np.arange(len(node)) - np.repeat(np.cumsum(size) - size, size)
        tested = rank < np.minimum(np.floor(fraction * size + 0.5), size - 1)[node]
    else:
        for_test = rng.random(len(data.y)) < fraction
        bare = np.bincount(node[~for_test[sample]], minlength=n) == 0
        for_test[sample[(np.cumsum(size) - size)[bare & (size > 0)]]] = False
        tested = for_test[sample]
    if not tested.any():
        raise InputError(f"fraction={fraction} leaves no node a test sample, the largest has {size.max()} samples.")
    train, test = (
        cut(data.x, data.y, sample[which], np.bincount(node[which], minlength=n), len(node))
        for which in (~tested, tested)
    )
    return train, test


def own_tests(data: Dataset, nodes: Shards) -> Shards:
    """The test samples of each node's client, as shards over `test_x` and `test_y`; empty (size 0) where it has none.

    Args:
        data: knows the natural key of its train and test samples (`clients`, `test_clients`).
        nodes: shards of `data` with one client a node, as `by_client` makes them.

    Raises:
        InputError: there are no such keys, or a node has samples of several clients.
    """
    if data.clients is None or data.test_clients is None:
        which = "clients" if data.clients is None else "test_clients"
        raise InputError(f"data={data.name!r} has {which}=None, own_tests needs a natural key a test sample.")
    node, sample = owned(nodes)
    if not len(nodes.y) == len(data.y) or (np.asarray(nodes.size) < 1).any():
        raise InputError("nodes must be shards of data with a train sample each, as by_client makes them.")
    client = np.zeros(nodes.size.shape[0], np.int64)
    client[node] = data.clients[sample]
    mixed = np.unique(node[data.clients[sample] != client[node]])
    if mixed.size:
        raise InputError(
            f"nodes has samples of several clients in {mixed.size} nodes, such as {mixed[0]}: one is needed."
        )
    keys = 1 + max(client.max(), data.test_clients.max(initial=0))
    group, size = np.argsort(data.test_clients, kind="stable"), np.bincount(data.test_clients, minlength=keys)
    first = np.cumsum(size) - size
    order = np.concatenate([group[first[c] : first[c] + size[c]] for c in client])
    return cut(on_device(data.test_x), constant(data.test_y), order, size[client])
