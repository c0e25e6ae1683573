"""Errors that end a run with one clear line instead of a traceback."""


class UserError(Exception):
    """An error that the user can correct: a flag, a file, a folder. Exit code 2."""

    exit_code = 2


class TrainingFailed(Exception):
    """Training itself failed (non-finite numbers, no readable checkpoint). Exit code 1."""

    exit_code = 1
