"""Component functions: pairs of features whose products estimate exp(x·y); `COMPONENTS` names them all."""

from jaxattn.random_features.components.base import Component
from jaxattn.random_features.components.discrete import GeomRF, PoisRF
from jaxattn.random_features.components.exponential import ADERF, GERF, OPRF, SADERF, SDERF, PosRF
from jaxattn.random_features.components.trigonometric import HRF, TrigRF

# A new component function is one class and one line here.
COMPONENTS: dict[str, type[Component]] = {
    "trigrf": TrigRF,
    "posrf": PosRF,
    "gerf": GERF,
    "oprf": OPRF,
    "sderf": SDERF,
    "aderf": ADERF,
    "saderf": SADERF,
    "geomrf": GeomRF,
    "poisrf": PoisRF,
    "hrf": HRF,
}

__all__ = [
    "ADERF",
    "COMPONENTS",
    "GERF",
    "HRF",
    "OPRF",
    "SADERF",
    "SDERF",
    "Component",
    "GeomRF",
    "PoisRF",
    "PosRF",
    "TrigRF",
]
