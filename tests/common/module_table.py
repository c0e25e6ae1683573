"""One row a mechanism as a module. `test_modules.py` runs every check over every row; `table.py` has the kernels'."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jaxattn.nn import (
    Alibi,
    CrossCorrelation,
    EnergyGated,
    Forgetting,
    Hierarchical,
    Linear,
    Mechanism,
    OutputGated,
    RandomFeatures,
    Retention,
    Softmax,
)
from tests.common import naive


@dataclasses.dataclass(frozen=True)
class Module:
    """One mechanism as a module.

    Attributes:
        name: of the row.
        mechanism: the description.
        core: the naive reference of what it does to queries, keys and values.
        own: the parameters that the reference takes, by their names in the module; "energy" stands for the energies
            that a gate projects, "forget" for the logits of the forgetting gate, "output" for a gate on the output.
        draws: whether the reference also takes the module's feature map, whose random numbers are no parameters.
        segments: whether there are segment ids.
        only_causal: whether the mechanism exists with a causal mask only.
    """

    name: str
    mechanism: Mechanism
    core: Callable[..., Any]
    own: tuple[str, ...] = ()
    draws: bool = False
    segments: bool = True
    only_causal: bool = False


def _forgetting(name: str, inner: Mechanism, core: Callable[..., Any], **options: Any) -> Module:
    return Module(
        f"{name}-forget",
        Forgetting(inner),
        functools.partial(naive.forgetting, core=core),
        ("forget",),
        only_causal=True,
        **options,
    )


GATE = ("energy", "alpha", "tau")
SOFTMAX_WITH_OPTIONS = Softmax(local_window_size=naive.WINDOW, logits_soft_cap=naive.CAP, sinks=True)


def _gated_module(normalization: str | None, **options: Any) -> Module:
    return Module(
        f"energy-{normalization}".lower(),
        EnergyGated(normalization=normalization, **options),
        functools.partial(naive.energy_gated, normalization=normalization),
        GATE,
        only_causal=normalization == "prefix",
    )


MODULES = (
    Module("softmax", Softmax(), naive.softmax),
    Module("softmax-options", SOFTMAX_WITH_OPTIONS, naive.softmax_with_options, ("sinks",)),
    _gated_module("running"),
    _gated_module("prefix"),
    Module(
        "energy-prefix-options",
        EnergyGated(SOFTMAX_WITH_OPTIONS, "prefix"),
        functools.partial(naive.energy_gated_with_options, normalization="prefix"),
        (*GATE, "sinks"),
        only_causal=True,
    ),
    Module("lags", CrossCorrelation(lags=2), naive.cross_correlation, ("lag_logits",)),
    Module(
        "lags-energy-running",
        EnergyGated(inner=CrossCorrelation(lags=2)),
        naive.gated_cross_correlation,
        ("lag_logits", *GATE),
    ),
    Module("features", RandomFeatures(num_features=14), naive.random_features, draws=True),
    Module(
        "features-energy-running",
        EnergyGated(inner=RandomFeatures(num_features=14)),
        naive.gated_random_features,
        GATE,
        draws=True,
    ),
    Module("tree", Hierarchical((3, 2)), naive.hierarchical, segments=False),
    Module(
        "tree-energy-running",
        EnergyGated(inner=Hierarchical((3, 2))),
        naive.gated_hierarchical,
        GATE,
        segments=False,
    ),
    Module("linear", Linear(), naive.elu),
    Module("softmax-alibi", Alibi(), functools.partial(naive.alibi, core=naive.softmax), only_causal=True),
    _forgetting("softmax", Softmax(), naive.softmax),
    _forgetting("linear", Linear(), naive.elu),
    Module("retention", Retention(), naive.retention, only_causal=True),
    Module("retention-gated", Retention("gated"), naive.retention, ("forget",), only_causal=True),
    _forgetting("features", RandomFeatures(num_features=14), naive.random_features, draws=True),
    _forgetting("tree", Hierarchical((3, 2)), naive.hierarchical, segments=False),
    Module("softmax-outgate", OutputGated(), naive.softmax, ("output",)),
    Module(
        "features-outgate",
        OutputGated(RandomFeatures(num_features=14), "channel"),
        naive.random_features,
        ("output",),
        draws=True,
    ),
)

LEAKING_MODULE = _gated_module("sequence", allow_leak=True)
