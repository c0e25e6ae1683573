"""Weight matrices W for random features, each with its own fast product; `WEIGHTS` names them all."""

from jaxattn.random_features.weights.base import Weights
from jaxattn.random_features.weights.bbq import BBQ
from jaxattn.random_features.weights.fastfood import Fastfood, FastfoodLearnable
from jaxattn.random_features.weights.gaussian import Gaussian
from jaxattn.random_features.weights.generator import Generator
from jaxattn.random_features.weights.gmm import GMM
from jaxattn.random_features.weights.inn import INN
from jaxattn.random_features.weights.mm import MM
from jaxattn.random_features.weights.orf import ORF
from jaxattn.random_features.weights.p_model import PModel
from jaxattn.random_features.weights.qmc import QMC
from jaxattn.random_features.weights.rom import ROM
from jaxattn.random_features.weights.scrf import SCRF
from jaxattn.random_features.weights.sgq import SGQ
from jaxattn.random_features.weights.simrf import SimRF
from jaxattn.random_features.weights.sorf import SORF
from jaxattn.random_features.weights.ssf import SSF
from jaxattn.random_features.weights.ssr import SSR

# A new family is one file and one line here.
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
