"""The zoo: every system by name, with its paper and its claim."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from jaxfl.algorithms.centralized import centralized
from jaxfl.algorithms.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.dsgd import dfedavgm, dsgd
from jaxfl.algorithms.fedavg import fedavg, fedsgd
from jaxfl.algorithms.fedopt import fedadagrad, fedadam, fedyogi
from jaxfl.algorithms.fedprox import fedprox
from jaxfl.algorithms.gradient_tracking import gradient_tracking
from jaxfl.algorithms.local_only import local_only
from jaxfl.algorithms.momentum_fl import fedavg_m, fedavg_m_vr, scaffold_m, scaffold_m_vr
from jaxfl.algorithms.scaffold import scaffold
from jaxfl.core import InputError, nearest
from jaxfl.programs.gossip_averaging import gossip_averaging
from jaxfl.programs.push_sum import push_sum


class Paper(NamedTuple):
    """Where a system was published. `card` is its three-digit number in the list of papers, if it has one."""

    title: str
    authors: str
    venue: str
    link: str
    card: str | None = None
    claim: str | None = None  # module of jaxfl.claims


class Entry(NamedTuple):
    """One system of the zoo."""

    make: Callable  # (task, ...) -> Algorithm; protocols: (net) -> Algorithm
    kind: str  # federated | gossip | reference | protocol
    paper: Paper | None


FEDAVG = Paper(
    "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    "McMahan, Moore, Ramage, Hampson, Aguera y Arcas",
    "AISTATS 2017",
    "https://arxiv.org/abs/1602.05629",
    "056",
    "fedavg",
)
FEDPROX = Paper(
    "Federated Optimization in Heterogeneous Networks",
    "Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith",
    "MLSys 2020",
    "https://arxiv.org/abs/1812.06127",
    "037",
    "fedprox",
)
FEDOPT = Paper(
    "Adaptive Federated Optimization",
    "Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan",
    "ICLR 2021",
    "https://arxiv.org/abs/2003.00295",
    "091",
    "fedopt",
)
MOMENTUM = Paper(
    "Momentum Benefits Non-IID Federated Learning Simply and Provably",
    "Cheng, Huang, Wu, Yuan",
    "ICLR 2024",
    "https://arxiv.org/abs/2306.16504",
    "061",
    "momentum_fl",
)
SCAFFOLD = Paper(
    "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    "Karimireddy, Kale, Mohri, Reddi, Stich, Suresh",
    "ICML 2020",
    "https://arxiv.org/abs/1910.06378",
)
DSGD = Paper(
    "Can Decentralized Algorithms Outperform Centralized Algorithms?",
    "Lian, Zhang, Zhang, Hsieh, Zhang, Liu",
    "NeurIPS 2017",
    "https://arxiv.org/abs/1705.09056",
)
DFEDAVGM = Paper(
    "Decentralized Federated Averaging", "Sun, Li, Wang", "IEEE TPAMI 2023", "https://arxiv.org/abs/2104.11375"
)
DFEDSAM = Paper(
    "Improving the Model Consistency of Decentralized Federated Learning",
    "Shi, Shen, Wei, Sun, Yuan, Wang, Tao",
    "ICML 2023",
    "https://arxiv.org/abs/2302.04083",
    "004",
    "dfedsam",
)
TRACKING = Paper(
    "Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs",
    "Nedic, Olshevsky, Shi",
    "SIAM J. Optim. 2017",
    "https://arxiv.org/abs/1607.03218",
)
AVERAGING = Paper(
    "Fast linear iterations for distributed averaging",
    "Xiao, Boyd",
    "Systems & Control Letters 2004",
    "https://doi.org/10.1016/j.sysconle.2004.02.022",
)
PUSH_SUM = Paper(
    "Gossip-Based Computation of Aggregate Information",
    "Kempe, Dobra, Gehrke",
    "FOCS 2003",
    "https://doi.org/10.1109/SFCS.2003.1238221",
)

ZOO: dict[str, Entry] = {
    "fedavg": Entry(fedavg, "federated", FEDAVG),
    "fedsgd": Entry(fedsgd, "federated", FEDAVG),
    "fedprox": Entry(fedprox, "federated", FEDPROX),
    "fedadagrad": Entry(fedadagrad, "federated", FEDOPT),
    "fedadam": Entry(fedadam, "federated", FEDOPT),
    "fedyogi": Entry(fedyogi, "federated", FEDOPT),
    "scaffold": Entry(scaffold, "federated", SCAFFOLD),
    "fedavg_m": Entry(fedavg_m, "federated", MOMENTUM),
    "scaffold_m": Entry(scaffold_m, "federated", MOMENTUM),
    "fedavg_m_vr": Entry(fedavg_m_vr, "federated", MOMENTUM),
    "scaffold_m_vr": Entry(scaffold_m_vr, "federated", MOMENTUM),
    "dsgd": Entry(dsgd, "gossip", DSGD),
    "dfedavgm": Entry(dfedavgm, "gossip", DFEDAVGM),
    "dfedsam": Entry(dfedsam, "gossip", DFEDSAM),
    "dfedsam_mgs": Entry(dfedsam_mgs, "gossip", DFEDSAM),
    "gradient_tracking": Entry(gradient_tracking, "gossip", TRACKING),
    "centralized": Entry(centralized, "reference", None),
    "local_only": Entry(local_only, "reference", None),
    "gossip_averaging": Entry(gossip_averaging, "protocol", AVERAGING),
    "push_sum": Entry(push_sum, "protocol", PUSH_SUM),
}


def find(name: str) -> Entry:
    """The entry called `name`. Raises `InputError` with the nearest names for an unknown one."""
    key = name.lower().replace("-", "_")
    if key not in ZOO:
        raise InputError(f"system {name!r} is unknown: {nearest(key, ZOO)}")
    return ZOO[key]


def claims() -> dict[str, Paper]:
    """The papers whose claim jaxfl reproduces, by the claim's module name."""
    return {e.paper.claim: e.paper for e in ZOO.values() if e.paper is not None and e.paper.claim is not None}


def find_claim(name: str) -> tuple[str, Callable]:
    """The claim of a system or of a three-digit card: its module's name and its `reproduce` function.

    Raises:
        InputError: for an unknown name (with the nearest ones) or a system without a claim.
    """
    known = claims()
    by_card = {p.card: module for module, p in known.items()}
    if name in by_card:
        module = by_card[name]
    elif name in known:
        module = name
    else:
        if name.isdigit():
            raise InputError(f"card {name!r} has no claim here: known are {', '.join(sorted(filter(None, by_card)))}.")
        paper = find(name).paper
        if paper is None or paper.claim is None:
            raise InputError(f"system {name!r} has no claim: those that do are {', '.join(known)}.")
        module = paper.claim
    return module, importlib.import_module(f"jaxfl.claims.{module}").reproduce


def cite(name: str) -> str:
    """The reference of a system, one line."""
    paper = find(name).paper
    return f"{name}: no paper" if paper is None else f"{paper.authors}. {paper.title}. {paper.venue}. {paper.link}"
