"""Which LAPACK calls a lowered program holds."""

import re
from typing import Any

import numpy as np


def stacks(lowered: Any) -> set[int]:
    """How many matrices its LAPACK calls take at once (empty: it has none)."""
    shapes = re.findall(r"custom_call @lapack_\w+\(.*?: \(tensor<([\dx]*)x\w+>", lowered.as_text())
    return {int(np.prod([int(k) for k in shape.split("x")][:-2])) for shape in shapes}
