"""The split methods and routers by their names in the configuration; to add one, add its file and a line here."""

from typing import Any

from moesaic.experts import router_least_squares, router_random, split_activation, split_random

SPLITS: dict[str, Any] = {"random": split_random, "activation": split_activation}
ROUTERS: dict[str, Any] = {"random": router_random, "least-squares": router_least_squares}
