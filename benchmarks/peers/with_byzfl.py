"""W4 in ByzFL: the variant `torch` or `numpy`, a row a rule; a round is one aggregation of all messages."""

import numpy as np
import torch
from common import arguments, clock, report, stand_in, take
from networks import THREADS

stand_in("torchvision", "torchvision.datasets", "torchvision.transforms")
import byzfl  # noqa: E402

PARAMETERS = 100_000


def main() -> None:
    """The rules of the suite's W4, with an eighth of the messages feared to be false."""
    args = arguments("w4")
    f = args.nodes // 8
    x = np.random.default_rng(0).standard_normal((args.nodes, PARAMETERS), np.float32)
    rules = {
        "median": byzfl.Median(),
        "trimmed mean": byzfl.TrMean(f),
        "krum": byzfl.Krum(f),
        "geometric median, 3 steps": byzfl.GeometricMedian(T=3),
        "centered clipping": byzfl.CenteredClipping(L=1, tau=10.0),
    }
    torched = args.variant == "torch"
    messages, settings = (torch.from_numpy(x), THREADS) if torched else (x, (None,))
    for name, rule in rules.items():
        mark, marks = clock(args.rounds, settings, torch.set_num_threads if torched else lambda _: None)
        take(lambda rule=rule: rule(messages), args.rounds, mark)
        first = {} if name == "median" else {"first_round_at": None}  # the others find everything loaded
        report(args, f"ByzFL on {args.variant}", "byzfl", marks, None, rule=name, **first)


if __name__ == "__main__":
    main()
