"""A user's project: where the workflow lies that is installed with the package, and a new folder that runs it."""
