"""The nearest mixture of models, by a search over the faces of the simplex, in float64."""

from itertools import combinations

import numpy as np


def nearest(w, C):
    """The best mixture: on each face where all shares are at least 0, by the equations of its minimum."""
    best, found = np.inf, np.zeros(len(C))
    for size in range(1, len(C) + 1):
        for face in map(list, combinations(range(len(C)), size)):
            rows = C[face]
            system = np.block([[rows @ rows.T, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            u = np.linalg.lstsq(system, np.append(rows @ w, 1.0), rcond=None)[0][:size]
            if u.min() > -1e-12 and abs(u.sum() - 1) < 1e-9 and (gap := ((w - u @ rows) ** 2).sum()) < best - 1e-12:
                best, found = gap, np.zeros(len(C))
                found[face] = u
    return found
