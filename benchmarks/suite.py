"""Speed and memory of jaxfl against the hand-written bound, the machine's own limit and other libraries.

    python benchmarks/suite.py                  all workloads and, where they are installed, all peers
    python benchmarks/suite.py w1 w3            some of them
    python benchmarks/suite.py shapes --only w3   a part of `shapes`: of w1, w3, w5, robust, scaffold, diloco
    python benchmarks/suite.py round --only admm  a part of `round`: some of its systems
    python benchmarks/suite.py gpu --only scale  a part of `gpu`: of workloads, formulations, systems, scale
    python benchmarks/suite.py gpu              all that is asked of an accelerator, in at most 8 minutes
    python benchmarks/suite.py --tiny --out X   all of them so small that nothing is measured, into the folder X
    python benchmarks/suite.py --pages          only write the page and the pictures again

w1   FedAvg, MLP 784-64-10, 1,000 clients x 60 images, 10 / 100 / 1,000 a round, 3 steps of 20
w2   FedAvg, CNN of two 3 x 3 convolutions, 500 clients x 120 images, 50 a round, 6 steps of 20
w3   D-SGD on a ring, the MLP of w1, one step of 20 a round, 16 / 64 / 256 / 1,024 / 4,096 nodes
w4   robust rules at a server, 64 and 512 messages of 100,000 numbers, f = n / 8
w5   D-SGD on a random 8-regular graph, MLP 64-32-10 on digits, 10,000 nodes; and with medians, also among liars
w6   FedBuff, the MLP of w1, 1,000 clients, 100 at work, every 10th arrival a round: against FedAvg with cohorts of 10
w7   DiLoCo, character transformer on text by author, 16 nodes, 20 AdamW steps and a Nesterov step
w8   FedAvg of 1,000,000 clients against 1,000, cohort 100, logistic model
g10k D-SGD on a random 8-regular graph, logistic model on digits, 2,500 / 5,000 / 10,000 nodes
shapes six systems at numbers of nodes that nobody tuned for, beside the next multiple of 64, on 1, 2 and 8 devices
sweep  24 points of FedProx, 2 seeds each, 50 clients, logistic model: in one program against one by one
events 1,000,000 meetings of random gossip, 4,096 nodes x 1,000 numbers, random 8-regular graph: in waves against one by
       one; a "round" is 1,000 of them
waves  FedAsync, 256 jobs in flight, small perceptron: those that do not depend on each other at once against one by one
compile  every system of the zoo on 8 nodes: CPU seconds until its first round is done, less those of a second
round    every system with a server beside FedAvg, 10,000 clients, 100 a round, W1's model and data: CPU seconds a round
gpu  W1 to W7 in short settings, convolution, mixing and rules in plain and fast formulations, every system against the
     CPU at a tolerance, 16 bits, up to 100,000 nodes: the most important first, nothing begun after `--seconds`

Rows are printed as JSON lines and kept in `results.jsonl`, from which `README.md` and the pictures are made; a run
replaces the rows of its own workloads. Times are medians of warm blocks of rounds, in which jaxfl and the bound take
turns; the ratio is the median of the ratios of turns. Every measurement has a process of its own.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import results
from child import run_child
from workloads import CASES, ORDER, PARTS, PEERS, TABLES, TINY

HERE = Path(__file__).resolve().parent
PATIENCE = 900  # seconds that a peer may take for one case


def own_rows(name: str, turns: int, tiny: bool, seconds: float, only: Sequence[str]) -> Iterator[dict]:
    """jaxfl's rows of a workload. A case that fails is a row with an `error`, and the others go on."""
    options = ["--turns", str(turns), *(["--tiny"] if tiny else [])]
    if name in TABLES:
        more = [*(["--seconds", str(seconds)] if name == "gpu" else []), *(["--only", *only] if only else [])]
        try:
            yield from run_child("rows", name, *options, *more)
        except RuntimeError as error:
            yield {"workload": name, "error": str(error)}
        return
    for i, case in enumerate((TINY if tiny else CASES)[name]):
        try:
            (row,) = run_child("race", name, str(i), *options)
            with tempfile.TemporaryDirectory() as cache:
                (cold,) = run_child("alone", name, str(i), *options, cache=cache)
                (warm,) = run_child("alone", name, str(i), *options, cache=cache)
        except RuntimeError as error:
            yield {"workload": case.function.upper(), "nodes": case.size[0], "size": case.size, "error": str(error)}
            continue
        # a program from the cache is not compiled: its memory is that of the run, the compiler's is in peak_mb
        yield (
            row
            | warm
            | {"peak_mb": cold["peak_mb"], "startup_seconds": cold["startup_seconds"]}
            | {"startup_warm_seconds": warm["startup_seconds"]}
        )


def peer_rows(name: str) -> Iterator[dict]:
    """Rows of the other libraries that are installed and take part in a workload."""
    from peers.run import WORKLOADS, installed, measure

    able = [peer for peer in installed() if name in WORKLOADS[peer]]
    if not able or name not in PEERS:
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        list(run_child("data", str(data)))
        for nodes, cohort, rounds in PEERS[name]:
            for peer in able:
                for row in measure(peer, name, data, nodes=nodes, cohort=cohort, rounds=rounds, timeout=PATIENCE):
                    yield row | ({"workload": f"W4 {row['rule']}"} if "rule" in row else {})


def parts_of(name: str) -> Sequence[str]:
    """What `--only` can name of a workload."""
    if name == "round":
        from workloads.rounds import names

        return names()
    return PARTS.get(name, ())


def write_pages(rows: list[dict], folder: Path) -> None:
    """`README.md` and the pictures."""
    import picture
    import table

    drawn = picture.draw(rows, folder / "figures")
    (folder / "README.md").write_text(table.render(rows, drawn))


def main(argv: list[str]) -> int:
    """Run what `argv` names, or everything; 1 where something failed."""
    parser = argparse.ArgumentParser(description="Measure jaxfl.")
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(ORDER)} (default: all)")
    parser.add_argument("--turns", type=int, default=9, help="blocks of rounds timed")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out: their rows stay")
    parser.add_argument("--seconds", type=float, default=450, help="of gpu: nothing is begun after so many")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="of shapes, round and gpu: some of their parts"
    )
    parser.add_argument("--pages", action="store_true", help="measure nothing, write page and pictures")
    parser.add_argument("--out", type=Path, help="folder of results.jsonl and README.md (default: this one)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in ORDER]
    if unknown:
        parser.error(f"workload {unknown[0]} is unknown; known are {', '.join(ORDER)}.")
    for part in args.only:
        known = parts_of(args.names[0]) if len(args.names) == 1 else ()
        if part not in known:
            words = f"known are {', '.join(known)}." if known else "for shapes, round or gpu alone."
            parser.error(f"--only {part}: {words}")
    if args.tiny and args.out is None:
        parser.error("--tiny measures nothing and needs --out, a folder beside the results.")
    folder = args.out or HERE
    path = folder / "results.jsonl"
    if args.pages:
        write_pages(results.read(path), folder)
        return 0
    if missing := results.missing():
        parser.error(f"not installed: pip install {' '.join(missing)}")
    (machine,) = run_child("machine")
    accelerator = args.tiny or machine["backend"] != "cpu"
    if "gpu" in args.names and not accelerator:
        parser.error("gpu needs an accelerator, and JAX sees only CPUs here.")
    dated = {"date": machine.pop("date"), "machine": machine}
    failed = False
    for name in args.names or [name for name in ORDER if name != "gpu" or accelerator]:
        rows = []
        beside = () if args.tiny or args.no_peers else peer_rows(name)
        for row in itertools.chain(own_rows(name, args.turns, args.tiny, args.seconds, args.only), beside):
            rows.append({"suite": name} | row | dated)
            print(json.dumps(rows[-1]), flush=True)
            failed |= "error" in row
            if name in ("gpu", "round"):  # such a run may be cut off
                results.replace(path, name, rows, parts=bool(args.only))
        results.replace(path, name, rows, parts=bool(args.only), alone=args.no_peers)
    write_pages(results.read(path), folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
