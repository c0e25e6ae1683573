"""The names of implementations, and where the fused kernels for TPUs are taken without being named."""

from collections.abc import Mapping

from jaxattn.core.call import Call
from jaxattn.core.checks import check_choice
from jaxattn.core.mesh import is_alone
from jaxattn.core.pallas.parts import own_part

# Lanes of a register of a TPU: tokens are cut at multiples of it.
LANES = 128
IMPLEMENTATIONS = (None, "xla", "pallas")


def check_implementation(implementation: str | None, reasons: Mapping[str, str | None]) -> None:
    """Raises unless it is None, "xla" or one of the fused kernels, and these have no reason against them."""
    check_choice("implementation", implementation, (None, "xla", *reasons))
    if implementation is not None and (reason := reasons.get(implementation)) is not None:
        raise ValueError(f"implementation={implementation!r} {reason}")


def takes_pallas(call: Call, reason: str | None, implementation: str | None, platform: str) -> bool:
    """Whether a platform does a call in fused kernels that there is this reason against, None for none.

    None is "pallas" where it can on a TPU from 128 queries on, in programs where a device is known to do all
    (`is_alone`) or all of its own rows and heads (`own_part`); else "xla".
    """
    if implementation is not None or platform != "tpu":
        return implementation == "pallas"
    return reason is None and call.query.shape[1] >= LANES and has_devices_of_its_own(call)


def has_devices_of_its_own(call: Call) -> bool:
    """Whether a device is known to do the whole call, or all of its own part: no compiler partitions the kernel."""
    return is_alone(call.query) or own_part(call) is not None
