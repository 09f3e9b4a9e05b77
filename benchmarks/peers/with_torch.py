"""W1, W2 and W3 in PyTorch without a framework: a plain loop over the members, and one `torch.func.vmap` over them."""

from collections.abc import Callable, Iterator

import torch
from common import Data, Work, arguments, clock, load, report, take, work
from networks import THREADS, accuracy, network, tensors
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

BLOCK = 50  # clients stacked at once: 25 to 100 are alike on two cores, 10 is slower


def federated_loop(model: nn.Module, data: Data, todo: Work, nodes: int, cohort: int) -> Callable[[], None]:
    """A round of FedAvg, one client after the other."""
    x, y = tensors(data)
    params: list[Tensor] = [*model.parameters()]

    def step() -> None:
        with torch.no_grad():
            start = [p.clone() for p in params]
            total = [torch.zeros_like(p) for p in params]
        for i in torch.randperm(nodes)[:cohort].tolist():
            with torch.no_grad():
                torch._foreach_copy_(params, start)
            for j in i * todo.samples + torch.randint(todo.samples, (todo.steps, todo.batch)):
                grads = torch.autograd.grad(cross_entropy(model(x[j]), y[j]), params)
                with torch.no_grad():
                    torch._foreach_add_(params, grads, alpha=-todo.lr)
            with torch.no_grad():
                torch._foreach_add_(total, params, alpha=1 / cohort)
        with torch.no_grad():
            torch._foreach_copy_(params, total)

    return step


def gradient_of_each(model: nn.Module, shared: bool = False) -> Callable[..., dict[str, Tensor]]:
    """Gradients of stacked parameters, each on its own batch; or of parameters that all share."""
    loss = lambda params, x, y: cross_entropy(functional_call(model, params, (x,)), y)
    return vmap(grad(loss), in_dims=(None if shared else 0, 0, 0))


def federated_vmap(model: nn.Module, data: Data, todo: Work, nodes: int, cohort: int) -> Callable[[], None]:
    """A round of FedAvg with the clients of a block in stacked tensors; in the first step all share their weights."""
    (x, y), first, later = tensors(data), gradient_of_each(model, shared=True), gradient_of_each(model)
    params = {k: v.detach() for k, v in model.named_parameters()}

    def step() -> None:
        total = {k: torch.zeros_like(v) for k, v in params.items()}
        for ids in torch.randperm(nodes)[:cohort].split(BLOCK):
            index = ids[:, None, None] * todo.samples + torch.randint(todo.samples, (len(ids), todo.steps, todo.batch))
            j = index[:, 0]
            grads = first(params, x[j], y[j])
            new = {k: torch.sub(v, grads[k], alpha=todo.lr) for k, v in params.items()}
            for t in range(1, todo.steps):
                j = index[:, t]
                grads = later(new, x[j], y[j])
                for k in new:
                    new[k].sub_(grads[k], alpha=todo.lr)
            for k in total:
                total[k] += new[k].sum(0) / cohort
        for k, v in params.items():
            v.copy_(total[k])

    return step


def mix(stack: dict[str, Tensor]) -> None:
    """Each node of the ring takes the mean of itself and its two neighbours."""
    for v in stack.values():
        v.copy_((v + v.roll(1, 0) + v.roll(-1, 0)) / 3)


def stacked(model: nn.Module, nodes: int) -> dict[str, Tensor]:
    """The parameters of all nodes, `[nodes, ...]`."""
    return {k: v.detach().repeat(nodes, *(1 for _ in v.shape)) for k, v in model.named_parameters()}


def ring_loop(model: nn.Module, stack: dict[str, Tensor], data: Data, todo: Work) -> Callable[[], None]:
    """A round of gossip on a ring, one node after the other, mixing all at once."""
    (x, y), params = tensors(data), dict(model.named_parameters())
    rows = [[v[i] for v in stack.values()] for i in range(len(next(iter(stack.values()))))]

    def step() -> None:
        index = torch.randint(todo.samples, (len(rows), todo.batch))
        for i, row in enumerate(rows):
            with torch.no_grad():
                torch._foreach_copy_(list(params.values()), row)
            j = i * todo.samples + index[i]
            grads = torch.autograd.grad(cross_entropy(model(x[j]), y[j]), list(params.values()))
            torch._foreach_add_(row, grads, alpha=-todo.lr)
        mix(stack)

    return step


def ring_vmap(model: nn.Module, stack: dict[str, Tensor], data: Data, todo: Work) -> Callable[[], None]:
    """The same with the steps of all nodes under one vmap."""
    (x, y), gradient = tensors(data), gradient_of_each(model)
    nodes = len(next(iter(stack.values())))

    def step() -> None:
        j = torch.arange(nodes)[:, None] * todo.samples + torch.randint(todo.samples, (nodes, todo.batch))
        grads = gradient(stack, x[j], y[j])
        for k, v in stack.items():
            v.sub_(grads[k], alpha=todo.lr)
        mix(stack)

    return step


def nodes_of(model: nn.Module, stack: dict[str, Tensor]) -> Iterator[nn.Module]:
    """The model of each of at most 64 nodes, spread evenly."""
    nodes = len(next(iter(stack.values())))
    for i in range(0, nodes, -(-nodes // 64)):
        model.load_state_dict({k: v[i] for k, v in stack.items()})
        yield model


NAMES = {"loop": "plain PyTorch loop", "vmap": "torch.func.vmap"}
FEDERATED = {"loop": federated_loop, "vmap": federated_vmap}
RING = {"loop": ring_loop, "vmap": ring_vmap}


def main() -> None:
    """The variant `loop` or `vmap`."""
    args = arguments("w1", "w2", "w3")
    data, todo, model = load(args.data), work(args.workload, args.nodes), network(args.workload)
    stack = stacked(model, args.nodes) if args.workload == "w3" else {}
    if stack:
        step = RING[args.variant](model, stack, data, todo)
    else:
        step = FEDERATED[args.variant](model, data, todo, args.nodes, args.cohort)
    mark, marks = clock(args.rounds, THREADS, torch.set_num_threads)
    take(step, args.rounds, mark)
    models = nodes_of(model, stack) if stack else [model]
    report(args, NAMES[args.variant], "torch", marks, accuracy(models, data))


if __name__ == "__main__":
    main()
