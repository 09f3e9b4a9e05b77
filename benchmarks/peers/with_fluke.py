"""W1 in fluke: its centralized averaging, clients that keep nothing between rounds, no evaluation."""

import torch
import torchmetrics  # noqa: F401 - before the stand-in: it asks for torchvision's version
from common import arguments, clock, load, report, stand_in, work
from networks import THREADS, accuracy, network, tensors

stand_in("torchvision", "torchvision.datasets", "torchvision.datasets.utils")
stand_in("torchvision.transforms", "torchvision.models")
from fluke import DDict, FlukeENV  # noqa: E402
from fluke.algorithms import CentralizedFL  # noqa: E402
from fluke.client import Client  # noqa: E402
from fluke.config import OptimizerConfigurator  # noqa: E402
from fluke.data import FastDataLoader  # noqa: E402
from fluke.server import Server  # noqa: E402
from fluke.utils import FederationObserver  # noqa: E402


def main() -> None:
    """The clients are made by hand, so that each owns the samples that the workload gives it."""
    args = arguments("w1")
    data, todo, model = load(args.data), work("w1", args.nodes), network("w1")
    x, y = tensors(data)
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_device("cpu")
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)

    def client(i: int) -> Client:
        rows = slice(i * todo.samples, (i + 1) * todo.samples)
        return Client(
            i,
            FastDataLoader(x[rows], y[rows], num_labels=10, batch_size=todo.batch, shuffle=True),
            None,
            OptimizerConfigurator(DDict(name="SGD", lr=todo.lr)),
            torch.nn.CrossEntropyLoss(),
            local_epochs=1,
            persistency=False,
        )

    mark, marks = clock(args.rounds, THREADS, torch.set_num_threads)

    class AfterRound(FederationObserver):
        def end_round(self, round: int) -> None:
            mark()

    clients = [client(i) for i in range(args.nodes)]
    learning = CentralizedFL(args.nodes, None, {}, clients, Server(model, None, clients))
    learning.set_callbacks([AfterRound()])
    mark()
    learning.run(args.rounds, min(1, (args.cohort + 0.5) / args.nodes), finalize=False)
    report(args, "fluke", "fluke-fl", marks, accuracy([learning.server.model], data))


if __name__ == "__main__":
    main()
