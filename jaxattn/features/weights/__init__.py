"""Weight matrices W for random features, each applied by its own fast algorithm; `WEIGHTS` names them all."""

from jaxattn.features.weights.base import Weights
from jaxattn.features.weights.bbq import BBQ
from jaxattn.features.weights.fastfood import Fastfood, FastfoodLearnable
from jaxattn.features.weights.gaussian import Gaussian
from jaxattn.features.weights.generator import Generator
from jaxattn.features.weights.gmm import GMM
from jaxattn.features.weights.inn import INN
from jaxattn.features.weights.mm import MM
from jaxattn.features.weights.orf import ORF
from jaxattn.features.weights.p_model import PModel
from jaxattn.features.weights.qmc import QMC
from jaxattn.features.weights.rom import ROM
from jaxattn.features.weights.scrf import SCRF
from jaxattn.features.weights.sgq import SGQ
from jaxattn.features.weights.simrf import SimRF
from jaxattn.features.weights.sorf import SORF
from jaxattn.features.weights.ssf import SSF
from jaxattn.features.weights.ssr import SSR

WEIGHTS: dict[str, type[Weights]] = {
    "gaussian": Gaussian,
    "orf": ORF,
    "sorf": SORF,
    "rom": ROM,
    "simrf": SimRF,
    "fastfood": Fastfood,
    "scrf": SCRF,
    "p_model": PModel,
    "qmc": QMC,
    "mm": MM,
    "ssf": SSF,
    "sgq": SGQ,
    "ssr": SSR,
    "fastfood_learnable": FastfoodLearnable,
    "gmm": GMM,
    "generator": Generator,
    "inn": INN,
    "bbq": BBQ,
}

__all__ = [
    "BBQ",
    "GMM",
    "Fastfood",
    "FastfoodLearnable",
    "Gaussian",
    "Generator",
    "INN",
    "MM",
    "ORF",
    "PModel",
    "QMC",
    "ROM",
    "SCRF",
    "SGQ",
    "SSF",
    "SSR",
    "SORF",
    "SimRF",
    "WEIGHTS",
    "Weights",
]
