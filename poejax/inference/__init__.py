"""What a trained product is for: ranking, features, classification, denoising, inpainting."""

from poejax.inference.classify import class_log_probs
from poejax.inference.features import features, reconstruct
from poejax.inference.noise import BitFlips, GaussianNoise, Noise
from poejax.inference.posterior import Posterior, denoise, inpaint
from poejax.inference.ranking import Ranking, rank

__all__ = [
    "BitFlips",
    "GaussianNoise",
    "Noise",
    "Posterior",
    "Ranking",
    "class_log_probs",
    "denoise",
    "features",
    "inpaint",
    "rank",
    "reconstruct",
]
