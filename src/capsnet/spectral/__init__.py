"""Exact convolution with a fraction of the multiplications; `convolution.py` says how."""

from capsnet.spectral.convolution import spectral_conv2d, steps_of, tap_planes
from capsnet.spectral.cost import best_tile

__all__ = ["best_tile", "spectral_conv2d", "steps_of", "tap_planes"]
