# What `import jaxfl as fl` offers: each name is loaded from here when it is first used.
from . import (
    algorithms as algorithms,
)
from . import (
    data as data,
)
from . import (
    models as models,
)
from . import (
    plugins as plugins,
)
from . import (
    programs as programs,
)
from . import (
    zoo as zoo,
)
from .core import (
    Algorithm as Algorithm,
)
from .core import (
    Cohort as Cohort,
)
from .core import (
    Env as Env,
)
from .core import (
    Graph as Graph,
)
from .core import (
    Inbox as Inbox,
)
from .core import (
    Links as Links,
)
from .core import (
    Log as Log,
)
from .core import (
    Mail as Mail,
)
from .core import (
    Metric as Metric,
)
from .core import (
    Outbox as Outbox,
)
from .core import (
    Process as Process,
)
from .core import (
    Program as Program,
)
from .core import (
    Scenario as Scenario,
)
from .core import (
    Shards as Shards,
)
from .core import (
    State as State,
)
from .core import (
    ages as ages,
)
from .core import (
    n_nodes as n_nodes,
)
from .core import (
    node_keys as node_keys,
)
from .core import (
    shares as shares,
)
from .core import (
    stream as stream,
)
from .core import (
    tile as tile,
)
from .core import (
    without as without,
)
from .data import corrupt as corrupt
from .data import partition as partition
from .data import synthetic as synthetic
from .data import text as text
from .engine import callbacks as callbacks
from .engine.plan import plan as plan
from .engine.rollout import rollout as rollout
from .engine.run import run as run
from .engine.runs import grid as grid
from .engine.saved import load_model as load_model
from .engine.saved import save_model as save_model
from .engine.schedule import Schedule as Schedule
from .engine.schedule import schedule as schedule
from .engine.sharding import node_mesh as node_mesh
from .engine.sharding import use_cores as use_cores
from .errors import InputError as InputError
from .errors import require as require
from .exchange import attacks as attacks
from .exchange import codecs as codecs
from .exchange import last as last
from .exchange import mixtures as mixtures
from .exchange import rules as rules
from .exchange import staleness as staleness
from .exchange import trust as trust
from .exchange.network import Network as Network
from .exchange.noise import Noise as Noise
from .exchange.personal import answer as answer
from .exchange.program import program as program
from .learn import cross_layer as cross_layer
from .learn import distill as distill
from .learn import exits as exits
from .learn import heads as heads
from .learn import hooks as hooks
from .learn import lift as lift
from .learn import preconditioner as preconditioner
from .learn import quantised as quantised
from .learn import submodels as submodels
from .learn import task as task
from .learn.accumulate import accum_adam as accum_adam
from .learn.layers import layers as layers
from .learn.layers import part as part
from .learn.local import local_curvature as local_curvature
from .learn.local import local_gradient as local_gradient
from .learn.local import local_sgd as local_sgd
from .learn.multilabel import multilabel as multilabel
from .learn.multitask import joint as joint
from .learn.multitask import multi_task as multi_task
from .learn.task import (
    Task as Task,
)
from .learn.task import (
    classification as classification,
)
from .learn.task import (
    language_model as language_model,
)
from .learn.task import linear_regression as linear_regression
from .learn.task import (
    logistic_regression as logistic_regression,
)
from .learn.task import regression as regression
from .learn.task import (
    to_module as to_module,
)
from .mapping.at import at as at
from .measure import curvature as curvature
from .measure import influence as influence
from .measure import metrics as metrics
from .measure import similarity as similarity
from .measure import theory as theory
from .measure.metrics import shared_test as shared_test
from .measure.submodels import exit_accuracy as exit_accuracy
from .measure.submodels import handed as handed
from .models import networks as networks
from .paper import Example as Example
from .paper import Given as Given
from .paper import Paper as Paper
from .paper import System as System
from .plugins import register as register
from .report import plots as plots
from .report import sweeps as sweeps
from .report import tables as tables
from .report.tables import summary as summary
from .report.tables import table as table
from .world import (
    availability as availability,
)
from .world import (
    churn as churn,
)
from .world import (
    clock as clock,
)
from .world import (
    cohort as cohort,
)
from .world import (
    compass as compass,
)
from .world import (
    delivery as delivery,
)
from .world import (
    durations as durations,
)
from .world import (
    events as events,
)
from .world import (
    graph as graph,
)
from .world import (
    groups as groups,
)
from .world import (
    links as links,
)
from .world import (
    max_plus as max_plus,
)
from .world import (
    mixing as mixing,
)
from .world import (
    overlay as overlay,
)
from .world import pace as pace
from .world import (
    participation as participation,
)
from .world import (
    regions as regions,
)
from .world import (
    removal as removal,
)
from .world import (
    temporal as temporal,
)
from .world import (
    topology as topology,
)
from .world import traces as traces
from .world import uneven as uneven
from .world import (
    weights as weights,
)
from .world import (
    work as work,
)
from .world.deadline import deadline as deadline
from .world.graph_files import load_topology as load_topology
from .world.interruption import interrupted as interrupted
from .world.matcha import matcha as matcha
from .world.process import process as process
from .world.scenario import scenario as scenario
from .world.slices import slices as slices
from .world.waves import waves as waves

__version__: str
