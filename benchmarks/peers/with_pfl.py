"""W1 and W2 in pfl-research on PyTorch: its federated averaging and simulated backend in one process.

Its data sets cut a client's samples into batches in order, without shuffling, and keep them. Its metrics of the cohort
are computed in the first round only.
"""

import numpy as np
import torch
from common import arguments, clock, load, report, work
from networks import THREADS, accuracy, network, tensors
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy


def main() -> None:
    """Both workloads."""
    args = arguments("w1", "w2")
    data, todo, module = load(args.data), work(args.workload, args.nodes), network(args.workload)
    x, y = tensors(data)
    np.random.seed(0)  # noqa: NPY002 - what pfl draws from

    def client(i: int) -> Dataset:
        rows = slice(i * todo.samples, (i + 1) * todo.samples)
        return Dataset((x[rows], y[rows]), user_id=i)

    module.loss = lambda x, y: cross_entropy(module(x), y)
    module.metrics = lambda x, y: {"loss": Weighted(cross_entropy(module(x), y).item() * len(y), len(y))}
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    order = np.random.permutation(args.nodes).tolist()  # noqa: NPY002
    clients = FederatedDataset(client, get_user_sampler("minimize_reuse", order))
    mark, marks = clock(args.rounds, THREADS, torch.set_num_threads)

    class AfterRound(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            mark()
            return False, Metrics()

    mark()
    FederatedAveraging().run(
        NNAlgorithmParams(args.rounds, args.rounds + 1, args.cohort, None),
        SimulatedBackend(clients, clients),
        model,
        NNTrainHyperParams(
            local_batch_size=todo.batch,
            local_num_epochs=None,
            local_learning_rate=todo.lr,
            local_num_steps=todo.steps,
        ),
        callbacks=[AfterRound()],
        send_metrics_to_platform=False,
    )
    report(args, "pfl-research", "pfl", marks, accuracy([module], data))


if __name__ == "__main__":
    main()
