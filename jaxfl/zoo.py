"""The zoo: every system by name, with its paper and its claim."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from jaxfl import papers
from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff, papaya
from jaxfl.algorithms.gossip.clipped_gossip import clipped_gossip, robust_gossip
from jaxfl.algorithms.gossip.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.gossip.dice import dice
from jaxfl.algorithms.gossip.dsgd import dfedavgm, dsgd
from jaxfl.algorithms.gossip.gradient_tracking import gradient_tracking
from jaxfl.algorithms.gossip.mhd import mhd, mutual_distillation
from jaxfl.algorithms.reference.centralized import centralized
from jaxfl.algorithms.reference.local_only import local_only
from jaxfl.algorithms.server.diloco import all_reduce, diloco, open_diloco
from jaxfl.algorithms.server.dilocox import cocktail_sgd, dilocox
from jaxfl.algorithms.server.fedavg import fedavg, fedsgd
from jaxfl.algorithms.server.fedopt import fedadagrad, fedadam, fedyogi
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.algorithms.server.modest import modest
from jaxfl.algorithms.server.momentum_fl import fedavg_m, fedavg_m_vr, scaffold_m, scaffold_m_vr
from jaxfl.algorithms.server.robust_sgd import learning_from_history, robust_sgd
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.errors import InputError, nearest
from jaxfl.papers import Paper
from jaxfl.programs.gossip_averaging import gossip_averaging
from jaxfl.programs.kcore import kcore_exact, kcore_incremental, kcore_restart
from jaxfl.programs.push_sum import push_sum


class Entry(NamedTuple):
    """One system of the zoo."""

    make: Callable  # (task, ...) -> Algorithm; protocols: (net) -> Algorithm
    kind: str  # federated | asynchronous | gossip | reference | protocol | study (runs in a world of its own)
    paper: Paper | None


ZOO: dict[str, Entry] = {
    "fedavg": Entry(fedavg, "federated", papers.FEDAVG),
    "fedsgd": Entry(fedsgd, "federated", papers.FEDAVG),
    "fedprox": Entry(fedprox, "federated", papers.FEDPROX),
    "fedadagrad": Entry(fedadagrad, "federated", papers.FEDOPT),
    "fedadam": Entry(fedadam, "federated", papers.FEDOPT),
    "fedyogi": Entry(fedyogi, "federated", papers.FEDOPT),
    "scaffold": Entry(scaffold, "federated", papers.SCAFFOLD),
    "fedavg_m": Entry(fedavg_m, "federated", papers.MOMENTUM),
    "scaffold_m": Entry(scaffold_m, "federated", papers.MOMENTUM),
    "fedavg_m_vr": Entry(fedavg_m_vr, "federated", papers.MOMENTUM),
    "scaffold_m_vr": Entry(scaffold_m_vr, "federated", papers.MOMENTUM),
    "dsgd": Entry(dsgd, "gossip", papers.DSGD),
    "dfedavgm": Entry(dfedavgm, "gossip", papers.DFEDAVGM),
    "dfedsam": Entry(dfedsam, "gossip", papers.DFEDSAM),
    "dfedsam_mgs": Entry(dfedsam_mgs, "gossip", papers.DFEDSAM),
    "gradient_tracking": Entry(gradient_tracking, "gossip", papers.TRACKING),
    "fedbuff": Entry(fedbuff, "asynchronous", papers.FEDBUFF),
    "papaya": Entry(papaya, "asynchronous", papers.PAPAYA),
    "fedasync": Entry(fedasync, "asynchronous", papers.FEDASYNC),
    "robust_sgd": Entry(robust_sgd, "federated", papers.HISTORY),
    "learning_from_history": Entry(learning_from_history, "federated", papers.HISTORY),
    "robust_gossip": Entry(robust_gossip, "gossip", papers.CLIPPED),
    "clipped_gossip": Entry(clipped_gossip, "gossip", papers.CLIPPED),
    "modest": Entry(modest, "federated", papers.MODEST),
    "all_reduce": Entry(all_reduce, "federated", None),
    "diloco": Entry(diloco, "federated", papers.DILOCO),
    "open_diloco": Entry(open_diloco, "federated", papers.OPEN_DILOCO),
    "cocktail_sgd": Entry(cocktail_sgd, "federated", papers.COCKTAIL),
    "dilocox": Entry(dilocox, "federated", papers.DILOCOX),
    "mhd": Entry(mhd, "study", papers.MHD),
    "mutual_distillation": Entry(mutual_distillation, "study", papers.MHD),
    "dice": Entry(dice, "study", papers.DICE),
    "kcore_restart": Entry(kcore_restart, "study", papers.MONTRESOR),
    "kcore_incremental": Entry(kcore_incremental, "study", papers.CORES),
    "kcore_exact": Entry(kcore_exact, "study", papers.CORES),
    "centralized": Entry(centralized, "reference", None),
    "local_only": Entry(local_only, "reference", None),
    "gossip_averaging": Entry(gossip_averaging, "protocol", papers.AVERAGING),
    "push_sum": Entry(push_sum, "protocol", papers.PUSH_SUM),
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
