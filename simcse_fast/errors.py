"""The exception classes of the package; every other error is a ValueError or a TypeError."""


class BackendUnavailableError(RuntimeError):
    """A back-end named by the caller cannot run here; the message says what is missing."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is the one sentence to show."""
