# What `import jaxfl as fl` offers: each name is loaded from here when it is first used.
from . import algorithms, data, models, plugins, programs, zoo
from .core import (
    Algorithm,
    Cohort,
    Env,
    Graph,
    Inbox,
    Links,
    Log,
    Mail,
    Metric,
    Outbox,
    Process,
    Program,
    Scenario,
    Shards,
    State,
    n_nodes,
    node_keys,
    shares,
    stream,
    tile,
)
from .data import corrupt, partition, synthetic, text
from .engine.plan import plan
from .engine.run import rollout, run
from .engine.runs import grid
from .engine.sharding import node_mesh, use_cores
from .errors import InputError, require
from .exchange import attacks, codecs, rules, staleness
from .exchange.network import Network
from .exchange.program import program
from .learn import distill, heads, hooks, task
from .learn.local import local_gradient, local_sgd
from .learn.task import Task, classification, language_model, logistic_regression
from .mapping.at import at
from .measure import curvature, influence, metrics, theory
from .measure.metrics import shared_test
from .models import networks
from .paper import Example, Given, Paper, System
from .plugins import register
from .report import plots, sweeps, tables
from .report.tables import summary, table
from .world import churn, clock, cohort, durations, graph, links, mixing, temporal, topology, work
from .world.process import process
from .world.scenario import scenario

__version__: str
