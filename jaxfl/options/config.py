"""The options of a run: what the command line shows, the TOML file that keeps them, and what can be checked at once.

Nothing here needs JAX, so help texts and typing errors are quick; `build` makes a world of the options. A new option is
one field of `Setup`: its type says what is allowed, and the commands, their help, config files and checks follow.
"""

import dataclasses
import math
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from tyro.conf import UseAppendAction, arg

from jaxfl import plugins
from jaxfl.errors import InputError, nearest
from jaxfl.options import times
from jaxfl.options.files import DATA, READ_BY_FILES, check_files, file_ending
from jaxfl.options.weights import spelt

TEXT = ("shakespeare", "topics")
KEYED = (*TEXT, "smartwatch", "synthetic")  # data sets whose samples have a natural key
PARTITIONS = ("dirichlet", "iid", "pathological", "lognormal", "power", "natural", "resampled")
MODELS = ("mlp", "cnn", "lenet", "resnet", "logistic", "linear", "transformer")
TASKS = ("classification", "regression", "multilabel", "language_model")
COMPUTES = ("float32", "bfloat16", "float16")
MIXINGS = ("metropolis", "uniform", "lazy", "max_degree", "optimal")
STATIC = ("ring", "torus", "grid", "hypercube", "exponential", "complete", "star", "regular", "erdos_renyi")
STATIC += ("barabasi_albert", "watts_strogatz", "geometric", "caveman", "two_level")
VARYING = ("one_peer", "matching", "el_oracle", "el_local")
RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centered_clipping")
ATTACKS = ("sign_flip", "alie", "ipm", "mimic", "gaussian")
CODECS = ("half", "int8", "int4", "sign", "top_k")
DIRECTED = ("exponential",)
DEGREE = ("regular", "erdos_renyi", "barabasi_albert", "watts_strogatz", "geometric", "el_oracle", "el_local")
GROUPS = ("caveman", "two_level")  # whose degree is the size of a group

# Options that only some values of another one read.
READ_BY = {
    "data_folder": ("data", ("fashion", "shakespeare", "smartwatch")),
    "alpha": ("partition", ("dirichlet", "resampled")),
    "shard_size": ("partition", ("resampled",)),
    "labels_per_node": ("partition", ("pathological",)),
    "bins": ("partition", ("dirichlet", "pathological", "resampled")),
    "hidden": ("model", ("mlp", "transformer")),
    "compute": ("model", tuple(name for name in MODELS if name != "logistic")),
    "degree": ("topology", (*DEGREE, *GROUPS)),
    "mixing": ("topology", STATIC),
}

# Options that only some kinds of systems read.
_LEARNING = ("server", "asynchronous", "gossip", "reference")
_OF_DATA = ("data", "data_folder", *READ_BY_FILES, "partition", "alpha", "bins", "shard_size", "labels_per_node")
_OF_DATA += ("model", "hidden", "compute")
KINDS: dict[str, tuple[str, ...]] = dict.fromkeys(
    (*_OF_DATA, "test_samples", "hold_out", "lr", "steps", "batch"), _LEARNING
)
KINDS |= dict.fromkeys(("topology", "degree", "mixing"), ("gossip", "protocol"))
KINDS |= dict.fromkeys(("personal", "link_noise"), ("server", "asynchronous", "gossip"))
KINDS |= dict.fromkeys(("cohort", "strata"), ("server",)) | dict.fromkeys(("concurrency", "goal"), ("asynchronous",))
KINDS["weights"] = ("server", "asynchronous")
KINDS |= dict.fromkeys(("trace", "durations"), ("server", "asynchronous", "gossip")) | {"deadline": ("server",)}

# Options that a system hears or does not; each is judged in a world with those before it.
SLOTS = ("topology", "degree", "mixing", "cohort", "strata", "concurrency", "goal", "weights", "lr", "steps", "batch")
SLOTS += (
    "trace",
    "durations",
    "deadline",
    "crash",
    "availability",
    "byzantine",
    "attack",
    "rule",
    "codec",
    "personal",
    "link_noise",
)
SLOTS += (TIMES := ("mbit", "latency_ms", "step_ms", "links"))


class Range(NamedTuple):
    """The finite numbers an option allows."""

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is one of them."""
        return self.least <= value < self.below and value > self.above

    def words(self) -> str:
        """What they are, for a person."""
        bounds = {"at least": self.least, "above": self.above, "below": self.below}
        bounds = {word: "2^31" if bound == 2**31 else bound for word, bound in bounds.items() if math.isfinite(bound)}
        said = " and ".join(f"{word} {bound}" for word, bound in bounds.items())
        return f"{'a whole number of' if self.whole else 'finite and'} {said}"


Count = Annotated[int, Range(least=1, below=2**31, whole=True)]  # JAX counts in 32 bits
Natural = Annotated[int, Range(least=0, below=2**31, whole=True)]
Positive = Annotated[float, Range(above=0)]
Time = Annotated[float, Range(least=0)]


def _named(names: Sequence[str], default: str) -> tuple[Any, ...]:
    """The type of an option that is one of the `names`."""
    return names, arg(metavar="NAME", help_behavior_hint=f"[{', '.join(names)}] (default: {default})")


def _maybe(metavar: str, default: str) -> Any:
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything a run needs beside the names of its systems."""

    nodes: Count = 1000
    """Nodes of the world; with a natural partition at most so many, those with the most samples."""
    data: Annotated[str, *_named(DATA, "mnist5k")] = "mnist5k"
    """Data set: a name, your own my.npz, my.csv, my.parquet or folder of class folders of images, or FILE.py:NAME."""
    target: Annotated[str | None, _maybe("COLUMN[,COLUMN]", "none; tables need it")] = None
    """Column of the target in your table; several are labels of 0 and 1, or numbers."""
    client_column: Annotated[str | None, _maybe("COLUMN", "none")] = None
    """Column of your table that says whose a row is; makes nodes of the natural partition."""
    features: Annotated[str | None, _maybe("COLUMN[,COLUMN]", "all other columns")] = None
    """Columns of your table that are inputs."""
    task: Annotated[str | None, *_named(TASKS, "what the target looks like")] = None
    """What the target of your file is."""
    image_size: Annotated[Count | None, _maybe("INT", "that of the images, which must be one")] = None
    """Pixels a side to which images of your folder are resized."""
    data_folder: Annotated[str | None, _maybe("PATH", "where it is installed")] = None
    """Folder or archive with the files of fashion, shakespeare or smartwatch."""
    partition: Annotated[
        str | None,
        *_named(PARTITIONS, "natural where samples have a key, else dirichlet; iid where there is no one target"),
    ] = None
    """How samples are dealt to nodes."""
    alpha: Positive = 0.3
    """Concentration of the dirichlet and resampled partitions, for each label; small is heterogeneous."""
    shard_size: Count = 20
    """Samples of a node in the resampled partition, which deals any number of nodes."""
    labels_per_node: Count = 2
    """Slices of one label a node gets in the pathological partition."""
    bins: Annotated[Count | None, _maybe("INT", "10 for a regression")] = None
    """Classes of equally many samples that stand for labels where the target of a partition by label is a number."""
    model: Annotated[str | None, *_named(MODELS, "mlp, transformer for tokens, logistic for synthetic")] = None
    """Model of every node; logistic is for labels, linear for a regression."""
    hidden: Count = 16
    """Hidden units of the mlp, width of the transformer."""
    compute: Annotated[str, *_named(COMPUTES, "float32")] = "float32"
    """Type of the model's arithmetic; parameters and updates stay float32. For accelerators."""
    topology: Annotated[str, *_named(STATIC + VARYING, "exponential")] = "exponential"
    """Who hears whom in gossip systems; one_peer, matching, el_oracle and el_local change every round. Or a file:
    .graphml, .npz, or .csv of [round,]source,target[,weight], where the target hears the source and rounds start again
    after the last."""
    degree: Count = 8
    """Neighbours a node has on average in topologies that leave it open; size of a group in caveman and two_level."""
    mixing: Annotated[str | None, *_named(MIXINGS, "metropolis, uniform on directed graphs")] = None
    """Mixing weights of a topology that does not change, or of a file that has none."""
    cohort: Annotated[Count | None, _maybe("INT", "a tenth of the nodes")] = None
    """Clients that take part in a round of a federated system."""
    strata: Count = 1
    """Equal blocks of nodes, each with its share of the cohort: a multiple of the devices keeps what nodes remember
    where it lives."""
    concurrency: Annotated[Count | None, _maybe("INT", "a tenth of the nodes")] = None
    """Clients at work at any time in an asynchronous system; how long each takes is `durations`, and its steps and
    transfers on top."""
    goal: Annotated[Count | None, _maybe("INT", "a tenth of concurrency")] = None
    """Arrivals that make a round of an asynchronous system."""
    durations: Annotated[
        str | None,
        arg(
            metavar="LAW[:KEY=VALUE,...]",
            help_behavior_hint="(default: lognormal:median=1,sigma=1 in asynchronous systems; else none, or that)",
        ),
    ] = None
    """Seconds of a client's job: fixed, uniform, lognormal, exponential, shifted_exponential, gamma, pareto,
    half_normal, tiers:shares=0.8/0.2,factors=1/10, trace:play=order. Of all laws: per=step, samples=1 (longer with more
    data), jitter=0.1 (every node has a speed of its own, around which its jobs vary), timeout=SECONDS, and bursts by
    round, begin=0.02,end=0.2,slower=10. A synchronous round takes as long as its slowest job, and transfers on top."""
    trace: Annotated[str | None, _maybe("FILE", "none")] = None
    """A .csv of node,seconds: durations of jobs that were measured, drawn anew, or by round: --durations
    trace:play=order."""
    deadline: Annotated[str | None, _maybe("SECONDS[:KEY=VALUE,...]", "a round waits for all its members")] = None
    """When a round of a system with a server ends at the latest, before its transfers: who is late counts nothing, or
    with late=partial the steps it did; keep=9 ends it with 9 answers, under least=5 it is void. --deadline inf:keep=9
    waits for 9."""
    weights: Annotated[str, arg(metavar="RULE[:KEY=VALUE,...]")] = "size"
    """How much members count: size (samples), uniform, disco:a=0.5,b=0.1,measure=kl (less, the more unlike labels)."""
    rule: Annotated[str, *_named(RULES, "mean")] = "mean"
    """How a receiver combines what it heard."""
    byzantine: Natural = 0
    """Nodes that lie, the first ones; scores are those of the others."""
    attack: Annotated[str | None, *_named(ATTACKS, "sign_flip where nodes lie")] = None
    """What liars say."""
    codec: Annotated[str | None, *_named(CODECS, "32-bit floats")] = None
    """How messages are compressed: int4, sign and top_k (5 %) remember what they lost."""
    personal: Annotated[str | None, _maybe("PATHS", "none")] = None
    """Part of the model that each node keeps to itself, by its paths: --personal "layers/1/*" or "*norm*,*head*"."""
    link_noise: Annotated[float, Range(least=0)] = 0.0
    """Standard deviation of the noise on each number of a message, up and down."""
    crash: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the nodes that crash for good at half of the rounds; scores still count their last models."""
    availability: Annotated[str | None, _maybe("LAW[:KEY=VALUE,...] or FILE", "everyone is up")] = None
    """Who is up in a round: markov:up=0.8,memory=0.5,corr=0.3,groups=4, diurnal:up=0.5,swing=0.4,period=24,zones=3 or
    sessions:up=10,down=5 (rounds); or a .csv of node,from,to, or of round,0,1,... with a 1 for who is up."""
    mbit: Annotated[Positive | None, _maybe("FLOAT", "transfers take no time")] = None
    """Megabits a second every node can send, and receive."""
    latency_ms: Time = 0.0
    """Milliseconds until a message's first bit arrives."""
    step_ms: Time = 0.0
    """Milliseconds of one local step."""
    links: Annotated[str | None, _maybe("FILE", "nothing lies between nodes")] = None
    """Regions: a .csv of from,to,latency_ms,mbit with a line a pair of regions (eu,eu,5,1000), and nodes, how many are
    there; what each node has itself comes on top."""
    rounds: Count = 40
    """Rounds."""
    every: Annotated[Count | None, _maybe("INT", "a tenth of the rounds")] = None
    """Rounds between evaluations."""
    test_samples: Count = 500
    """Test samples on which every node's model is evaluated, at most, evenly spaced over the test set."""
    hold_out: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of every node's samples that it keeps for a test of its own: who is served well, and who badly."""
    lr: Annotated[Positive | None, _maybe("FLOAT", "the system's own, mostly 0.1")] = None
    """Learning rate of local steps."""
    steps: Count = 3
    """Local steps a round."""
    batch: Natural = 4
    """Samples of a local step; 0 is the node's whole shard."""
    seeds: Count = 3
    """Runs with seeds seed, seed + 1, ..., in one program."""
    seed: Natural = 0
    """First seed, and seed of data, partition and topology."""
    options: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="[SYSTEM.]KEY=VALUE")] = ()
    """Option of the systems that have it, or of one: --set mu=0.01 --set dfedsam.rho=0.05."""
    devices: Annotated[Count | None, _maybe("INT", "one a CPU core; all accelerators")] = None
    """Devices over which nodes are spread."""
    out: Annotated[str | None, _maybe("PATH", "runs/COMMAND-SYSTEMS-TIME")] = None
    """Folder for results; must be new or empty."""
    checkpoints: bool = False
    """Save the state after every evaluation."""


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Setup)}


def unknown(what: str, name: str, known: Iterable[str]) -> Exception:
    """The `InputError` for a name that is not among the `known`: it says the nearest ones."""
    return InputError(f"{what} {name!r} is unknown: {nearest(name, known)}")


def filled(setup: Setup) -> Setup:
    """The setup with what None stands for, as far as that follows from numbers of nodes and liars."""
    some = max(1, setup.nodes // 10)
    working = some if setup.concurrency is None else setup.concurrency
    return dataclasses.replace(
        setup,
        cohort=some if setup.cohort is None else setup.cohort,
        concurrency=working,
        goal=max(1, working // 10) if setup.goal is None else setup.goal,
        attack="sign_flip" if setup.byzantine and setup.attack is None else setup.attack,
    )


def usual(setup: Setup) -> dict[str, Any]:
    """What every option is where nobody says otherwise, by name, in this world; a rate is the system's own."""
    bare = dataclasses.replace(setup, cohort=None, goal=None, attack=None)
    stands = {name: getattr(filled(bare), name) for name in ("cohort", "goal", "attack")}
    stands["concurrency"] = filled(dataclasses.replace(bare, concurrency=None)).concurrency
    if setup.topology in STATIC:
        stands["mixing"] = "uniform" if setup.topology in DIRECTED else "metropolis"
    return _DEFAULTS | stands


def spoken(name: str) -> str:
    """An option as it is typed."""
    return f"--{'set' if name == 'options' else name.replace('_', '-')}"


def check(setup: Setup) -> None:
    """Raise `InputError` for an unknown name or a number out of range, as far as that needs no data."""
    check_files(setup)
    spelt(setup.weights)
    times.durations(setup.durations, setup.trace)
    if setup.deadline is not None:
        times.deadline(setup.deadline)
    for name, allowed in _allowed():
        value = getattr(setup, name)
        if name == "data" and file_ending(value) is not None:
            continue
        if isinstance(allowed, Range):
            if value is not None and not allowed.holds(value):
                raise InputError(f"{name} is {value}, but must be {allowed.words()}.")
        elif value is not None and value not in allowed and not _outside(name, value):
            raise unknown(name, value, [*allowed, *(plugins.known(name) if name in plugins.GROUPS else ())])
    if setup.byzantine >= setup.nodes:
        raise InputError(f"byzantine is {setup.byzantine}, but must be below the number of nodes, {setup.nodes}.")
    if setup.crash and not round(setup.crash * setup.nodes):
        raise InputError(f"crash is {setup.crash}, but of {setup.nodes} nodes that is nobody.")
    if setup.attack is not None and not setup.byzantine:
        raise InputError(f"attack is {setup.attack}, but byzantine is 0: nobody lies.")
    if setup.seed + setup.seeds > 2**31:
        raise InputError(f"seed is {setup.seed}, but the last of {setup.seeds} seeds must be below 2^31.")
    if setup.cohort is not None and setup.cohort > setup.nodes:
        raise InputError(f"cohort is {setup.cohort}, but can be at most the number of nodes, {setup.nodes}.")
    if setup.concurrency is not None and setup.concurrency > setup.nodes:
        raise InputError(f"concurrency is {setup.concurrency}, but can be at most the number of nodes, {setup.nodes}.")
    if setup.topology in DEGREE and setup.degree >= setup.nodes:
        raise InputError(f"degree is {setup.degree}, but must be below the number of nodes, {setup.nodes}.")
    for name, (other, readers) in READ_BY.items():
        value, chosen = getattr(setup, name), getattr(setup, other)
        if name == "mixing" and plugins.is_graph_file(chosen):
            continue
        if chosen is not None and chosen not in readers and value not in (None, _DEFAULTS[name]):
            raise InputError(f"{name} is {value}, but {other} {chosen} does not read it: {', '.join(readers)} do.")
    if setup.data not in DATA:
        return  # what a user's own data fit is known when they are read
    text, model = setup.data in TEXT, setup.model
    if model in MODELS and text != (model == "transformer"):
        fit = "transformer" if text else ", ".join(m for m in MODELS if m != "transformer")
        raise InputError(f"model is {model}, but data {setup.data} needs {fit}.")
    if setup.partition == "natural" and setup.data not in KEYED:
        raise InputError(f"partition is natural, but data {setup.data} has no natural key: {', '.join(KEYED)} have.")
    if text and setup.partition in ("dirichlet", "pathological", "resampled"):
        raise InputError(f"partition is {setup.partition}, but data {setup.data} has no one label a sample.")


def _outside(name: str, value: str) -> bool:
    """Whether the value of an option is a thing of the user, or a file."""
    if name == "topology":
        return plugins.is_graph_file(value)
    return name in plugins.GROUPS and bool(plugins.find(name, value))


def _allowed() -> Iterator[tuple[str, Range | tuple[str, ...]]]:
    """What an option can be, by the types of the fields of `Setup`: a range of numbers, or one of some names."""
    for name, hint in typing.get_type_hints(Setup, include_extras=True).items():
        union = typing.get_args(getattr(hint, "__origin__", None))
        for part in (hint, *union):
            yield from ((name, mark) for mark in getattr(part, "__metadata__", ()) if isinstance(mark, tuple))
