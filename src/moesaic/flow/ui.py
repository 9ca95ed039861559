"""How to look at MLflow, as a command for the folder at hand."""

import re
from pathlib import Path

from moesaic.flow import store
from moesaic.schema.evaluate import Track


def command(uri: str | None = None) -> str:
    """`make ui` in a clone, mlflow's own command in a project, the address of a server. Args: uri: track.uri; None: its default."""
    uri = uri or Track().uri
    if store.is_http(uri):
        return _without_password(uri)
    if (
        uri == Track().uri
        and Path("Makefile").is_file()
        and "\nui:" in Path("Makefile").read_text(encoding="utf-8")
    ):
        return "make ui"
    return f"mlflow ui --backend-store-uri {_without_password(uri)} --host 127.0.0.1"


def _without_password(uri: str) -> str:
    """Reports are given away: three stars where a password is."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)
