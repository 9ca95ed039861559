"""The functions that a kernel may be, by name. Each is one file."""

from moesaic.model.adapters.functions import derivative, gabor, gaussian, laplacian
from moesaic.model.adapters.functions.base import Function

METHODS: dict[str, Function] = {
    "gabor": gabor.FUNCTION,
    "gaussian": gaussian.FUNCTION,
    "laplacian": laplacian.FUNCTION,
    "derivative": derivative.FUNCTION,
}
