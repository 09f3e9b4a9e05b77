"""Table, checks and picture of a study: nothing but the study and the histories decides them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfl.claims.evidence import Check, Evidence, check
from jaxfl.claims.study import (
    POINTS,
    Cells,
    Inequality,
    Study,
    asked,
    axes,
    bound_of,
    given_bound,
    named,
    paper_point,
    relation_of,
    within,
)
from jaxfl.report.plots import learning_curves
from jaxfl.report.style import new_figure, styled

COSTS = {"gradients": ("total_gradients",), "bits": ("total_up_bits", "total_down_bits"), "seconds": ("time",)}
ROUNDING = 1.001  # costs that differ by less are equal


def judge(study: Study, cells: Cells) -> Evidence:
    """What the histories say of a study's inequalities.

    The table has a row a point ("paper" or "best"), setting and arm: the numbers of the grid, how many points were
    tried, what the runs spent (over all nodes and rounds, mean over seeds) and every score with its standard deviation.
    """
    import pandas as pd

    arms = list(dict.fromkeys(cell[:2] for cell in cells))
    score = {cell: _scored(study, history) for cell, history in cells.items()}
    chosen = {
        "paper": {(where, name): tuple(paper_point(study, study.arms[name]).values()) for where, name in arms},
        "best": {arm: best_point(study, {c[2]: score[c] for c in cells if c[:2] == arm}) for arm in arms},
    }
    rows = {
        (point, *arm): dict(zip(axes(study, study.arms[arm[1]]), chosen[point][arm], strict=True))
        | {"tried": sum(c[:2] == arm for c in cells)}
        | {f"total {name}": value for name, value in _costs(cells[(*arm, chosen[point][arm])]).items()}
        | _spread(score[(*arm, chosen[point][arm])])
        for point in POINTS
        for arm in arms
    }
    checks, notes = [], []
    for s in study.says:
        for setting in [s.setting] if s.setting else _shared_settings(arms, s):
            for point in (p for p in POINTS if asked(s, p)):
                one, two = ((setting, arm, chosen[point][setting, arm]) for arm in (s.ours, s.theirs))
                checks += _checks(study, s, setting, point, score[one][s.score], score[two][s.score])
                if s.headline and not np.isfinite(score[two][s.score]).all():
                    notes.append(f"{checks[-1].what}: some runs of {s.theirs} diverge, or never get there")
            at = [cells[setting, arm, chosen["paper"][setting, arm]] for arm in (s.ours, s.theirs)]
            if s.headline and not s.costlier:
                what = f"{within(setting)}gradients or bits of {s.ours} over those of {s.theirs}, the larger"
                checks.append(Check(what, _dearer(*at), "<=", ROUNDING, role="condition", source="derived"))
        notes += [f"{named(s, s.setting)}: not asked at the best points, because {s.untuned}"] * bool(s.untuned)
        more = f"{within(s.setting)}{s.ours} may cost more than {s.theirs}, because {s.costlier}"
        notes += [more] * bool(s.costlier and more not in notes)
    if study.beside is not None:
        checks += study.beside({key: score[(*key[1:], chosen[key[0]][key[1:]])] for key in rows})
    edge = _on_an_edge(study, arms, chosen["best"], cells)
    notes += [f"a best point at this end of its grid counts, {end}: {why}" for end, why in study.ends.items()]
    notes += [f"best points at the end of their grid: {', '.join(edge)}"] * bool(edge)
    what = f"best points at the end of their grid, of {', '.join(study.arms)}"
    checks.append(Check(what, len(edge), "<=", 0, role="condition", source="derived"))
    names = ["point", "setting", "system"]
    return Evidence(pd.DataFrame.from_dict(rows, orient="index").rename_axis(names), _once(checks), (), tuple(notes))


def best_point(study: Study, scores: Mapping[tuple, Mapping[str, np.ndarray]]) -> tuple:
    """The point whose first score is best in the mean over seeds; of equal ones, one inside the grid."""
    name, first = next(iter(study.scores.items()))
    pick, tried = min if first.better == "low" else max, np.array(list(scores))
    ends = lambda point: int(((point == tried.min(0)) | (point == tried.max(0))).sum())
    return pick(sorted(scores, key=ends), key=lambda point: float(scores[point][name].mean()))


def _scored(study: Study, history: Any) -> dict[str, np.ndarray]:
    """The scores of a history, each `[s]`; what is not finite is the worst there is."""
    found = {name: np.asarray(s.of(history), np.float64) for name, s in study.scores.items()}
    worst = {name: np.inf if s.better == "low" else -np.inf for name, s in study.scores.items()}
    return {name: np.where(np.isfinite(v), v, worst[name]) for name, v in found.items()}


def _shared_settings(arms: Sequence[tuple], s: Inequality) -> list[str]:
    """The settings in which both arms live."""
    return [where for where, name in arms if name == s.ours and (where, s.theirs) in arms]


def _checks(study, s: Inequality, setting: str, point: str, one: np.ndarray, two: np.ndarray) -> list[Check]:
    """An inequality at a point, and perhaps in its worst seed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = one / two if s.op == "/" else one - two
    relation, role = relation_of(study, s), "headline" if s.headline else "consequence"
    what = f"{named(s, setting)}, {point} points"
    source = "derived" if given_bound(s, point) is None else s.source
    out = [check(what, values, relation, bound_of(s, point), role, source)]
    if s.every_seed:
        far = values.max() if relation == "<" else values.min()
        out.append(Check(f"{what}, worst seed", float(far), relation, float(s.op == "/"), (), role, "derived"))
    return out


def _once(checks: list[Check]) -> list[Check]:
    """Without conditions that were asked twice, of two scores of the same arms."""
    return list({c.what: c for c in checks}.values())


def _dearer(ours: Any, theirs: Any) -> float:
    """The larger ratio of what two runs spent in all, of gradients and of bits; seconds may be what is compared."""
    a, b = _costs(ours), _costs(theirs)
    return max((a[name] / b[name] for name in ("gradients", "bits") if name in a and b.get(name)), default=1.0)


def _costs(history: Any) -> dict[str, float]:
    """What an arm spent to the end, over all nodes."""
    ends = history.groupby("seed").last()
    known = {name: [c for c in columns if c in ends] for name, columns in COSTS.items()}
    return {name: float(ends[columns].sum(axis=1).mean()) for name, columns in known.items() if columns}


def _spread(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {
        name + part: float(value) for name, v in scores.items() for part, value in (("", v.mean()), ("_std", _std(v)))
    }


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=min(1, len(values) - 1))) if np.isfinite(values).all() else np.nan


def _on_an_edge(study: Study, arms: Sequence[tuple], best: Mapping[tuple, tuple], cells: Cells) -> list[str]:
    """Arms that are compared at their best points, with a tuned axis at whose end that lies."""
    compared = {name for s in study.says if not s.untuned for name in (s.ours, s.theirs)}
    found = []
    for where, name in arms:
        tried = np.array([c[2] for c in cells if c[:2] == (where, name)])
        for i, (axis, declared) in enumerate(axes(study, study.arms[name]).items()):
            values, mine = np.unique(tried[:, i]), best[where, name][i]
            ends = [end for end, value in (("low", values[0]), ("high", values[-1])) if mine == value]
            if name in compared and len(declared) > 1 and any(f"{axis} {end}" not in study.ends for end in ends):
                found.append(f"{where}{', ' if where else ''}{name} ({axis} = {mine:g})")
    return found


@styled
def draw(studies: Sequence[Study], cells: Sequence[Cells]) -> Any:
    """Every setting's curves, each system at its best point."""
    panels = [(study, c, where) for study, c in zip(studies, cells, strict=True) for where in {k[0]: 0 for k in c}]
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure((1.5 + 3.7 * columns, 0.3 + 3.0 * lines))
    places = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for ax in places[len(panels) :]:
        ax.remove()
    for i, (study, found, where) in enumerate(panels):
        curves = {}
        for name in study.arms:
            mine = {point: h for (place, arm, point), h in found.items() if (place, arm) == (where, name)}
            if mine:
                curves[name] = mine[best_point(study, {point: _scored(study, h) for point, h in mine.items()})]
        picture = {"y": _column(curves), "ax": places[i], "styles": tuple(study.arms)} | dict(study.picture)
        learning_curves(curves, **picture)
        if max(study.arms[name].rounds for name in curves) > 2:  # the others would be squeezed
            places[i].set_xscale("log", nonpositive="mask")
        places[i].set_title(f"{where}, best point of each" if where else "best point of each")
        last = places[i - 1].get_legend() if i % columns else None
        if last is not None and [t.get_text() for t in last.get_texts()] == list(curves):
            last.remove()  # the same as here
    return figure


def _column(curves: Mapping[str, Any]) -> str:
    """What to draw where the study does not say: the first usual column that all histories have."""
    usual = ("accuracy", "node_accuracy", "train_loss", "test_loss", "loss", "error")
    return next(c for c in usual if all(c in h for h in curves.values()))
