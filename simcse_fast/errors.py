"""The one exception class of the package that is not a ValueError or a TypeError."""


class BackendUnavailableError(RuntimeError):
    """A back-end named by the caller cannot run here; the message says what is missing."""
