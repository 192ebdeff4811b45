"""What a trained product is for: ranking, features, classification, denoising, inpainting."""

from poejax.inference._classify import class_log_probs
from poejax.inference._features import features, reconstruct
from poejax.inference._noise import BitFlips, GaussianNoise, Noise
from poejax.inference._posterior import Posterior, denoise, inpaint
from poejax.inference._ranking import Ranking, rank

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
