"""W3 in gossipy, whose gossip is another algorithm than W3.

In a round each node pushes its model to one random neighbour; who receives takes the mean of the two models and then
one SGD step. So a round of n nodes has n merges of two models and n steps, where W3 has n means of three models and n
steps. The batch of a step is drawn without replacement. One time step a round is the least work that its simulator
allows; nobody evaluates.
"""

import logging

import gossipy
import numpy as np
import torch
from common import arguments, clock, load, report, stand_in, work
from networks import THREADS, accuracy, mlp, tensors
from torch.nn.functional import cross_entropy

stand_in("torchvision")
from gossipy import simul  # noqa: E402
from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork  # noqa: E402
from gossipy.data import DataDispatcher  # noqa: E402
from gossipy.data.handler import ClassificationDataHandler  # noqa: E402
from gossipy.model import TorchModel  # noqa: E402
from gossipy.model.handler import TorchModelHandler  # noqa: E402
from gossipy.node import GossipNode  # noqa: E402


class Network(TorchModel):
    """The MLP as gossipy wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def init_weights(self) -> None:
        """All nodes start equal."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.layers(x)


def main() -> None:
    """A ring of so many nodes."""
    args = arguments("w3")
    data, todo, n = load(args.data), work("w3", args.nodes), args.nodes
    gossipy.set_seed(0)
    gossipy.LOG.setLevel(logging.ERROR)
    x, y = tensors(data)
    owned = [list(range(i * todo.samples, (i + 1) * todo.samples)) for i in range(n)]
    dispatcher = DataDispatcher(ClassificationDataHandler(x, y, test_size=0), n, eval_on_user=False, auto_assign=False)
    dispatcher.set_assignments(owned, None)
    ring = np.zeros((n, n), int)
    ring[np.arange(n), (np.arange(n) + 1) % n] = ring[np.arange(n), np.arange(n) - 1] = 1
    handler = TorchModelHandler(
        Network(),
        torch.optim.SGD,
        {"lr": todo.lr},
        cross_entropy,
        local_epochs=0,
        batch_size=todo.batch,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
    )
    nodes = GossipNode.generate(dispatcher, StaticP2PNetwork(n, ring), handler, round_len=1, sync=True)
    simulator = simul.GossipSimulator(nodes, dispatcher, delta=1, protocol=AntiEntropyProtocol.PUSH)
    mark, marks = clock(args.rounds, THREADS, torch.set_num_threads)

    class AfterRound(simul.SimulationEventReceiver):
        def update_timestep(self, t: int) -> None:
            mark()

        def update_message(self, failed, msg=None) -> None: ...

        def update_end(self) -> None: ...

    simulator.add_receiver(AfterRound())
    simul.track = lambda rounds, description: (t for t in rounds)  # no progress bar
    mark()
    simulator.init_nodes()
    simulator.start(args.rounds)
    models = (nodes[i].model_handler.model.layers for i in range(0, n, -(-n // 64)))
    report(args, "gossipy", "gossipy-dfl", marks, accuracy(models, data))


if __name__ == "__main__":
    main()
