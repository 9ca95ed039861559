"""Adapters that learn two modalities apart, and convolution kernels that are mathematical functions."""
