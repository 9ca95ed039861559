"""The one error type that a user may meet: a single line that names a key or a file and says what to do."""


class InputError(ValueError):
    """Wrong configuration, data or environment. The command line prints it without a traceback and exits with 2."""


class GatedError(InputError):
    """Data on the hub whose conditions this user has not accepted."""


class Interrupted(Exception):
    """The step was asked to stop (SIGTERM, SIGUSR2), saved what it had, and can go on. Exit code 75 (EX_TEMPFAIL)."""

    EXIT_CODE = 75
