"""`snakemake` that asks Slurm for its jobs every second, for tests.

The executor plugin waits ten seconds longer each time, as a real cluster's scheduler likes it. Only the main process is this one; its jobs start
`python -m snakemake`.
"""

import asyncio
import sys
from typing import Any

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

COMMAND = [sys.executable, __file__]
"""Takes the place of `snakemake`."""


async def second(_executor: Any) -> None:
    """In the place of RemoteExecutor.sleep."""
    await asyncio.sleep(1.0)


if __name__ == "__main__":
    RemoteExecutor.sleep = second
    main(sys.argv[1:])
