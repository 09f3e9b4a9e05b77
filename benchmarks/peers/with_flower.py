"""W1 and W2 in Flower with its simulation engine on ray: its `FedAvg`, one actor a core, PyTorch in the clients.

Each actor reads the data once. No evaluation, no telemetry; the clock reads the CPU time of ray's processes too.
"""

import logging
import os
import warnings
from functools import cache
from pathlib import Path

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from common import arguments, clock, family_cpu, load, report, work
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from networks import accuracy, network, tensors
from torch.nn.functional import cross_entropy

client_app = ClientApp()


@cache
def known(path: str, workload: str) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Images, labels and a network, once an actor."""
    return *tensors(load(Path(path))), network(workload)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """The local steps of one client."""
    config = message.content["config"]
    workload, nodes = str(config["workload"]), int(config["nodes"])
    todo = work(workload, nodes)
    x, y, model = known(str(config["data"]), workload)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer, first = torch.optim.SGD(model.parameters(), todo.lr), int(context.node_config["partition-id"])
    for j in first * todo.samples + torch.randint(todo.samples, (todo.steps, todo.batch)):
        optimizer.zero_grad()
        cross_entropy(model(x[j]), y[j]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": todo.samples})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


def main() -> None:
    """Both workloads."""
    args = arguments("w1", "w2")
    warnings.simplefilter("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    mark, marks = clock(args.rounds, cpu=family_cpu)
    model = network(args.workload)
    server_app = ServerApp()

    def after_round(number: int, arrays: ArrayRecord) -> None:
        mark()
        if number == args.rounds:
            model.load_state_dict(arrays.to_torch_state_dict())
            report(args, "Flower on ray", "flwr", marks, accuracy([model], load(args.data)))

    @server_app.main()
    def server(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=args.cohort / args.nodes,
            fraction_evaluate=0.0,
            min_train_nodes=args.cohort,
            min_available_nodes=args.nodes,
        )
        strategy.start(
            grid,
            ArrayRecord(model.state_dict()),
            args.rounds,
            train_config=ConfigRecord({"data": str(args.data), "workload": args.workload, "nodes": args.nodes}),
            evaluate_fn=after_round,
        )

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, args.nodes, backend_config=resources)


if __name__ == "__main__":
    # Functions of the program itself travel to the actors by value, and each task would read the data anew.
    import with_flower

    with_flower.main()
