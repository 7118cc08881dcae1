"""The two ways in which input can be wrong. Each message names the file, what was found and the remedy."""


class SlideError(Exception):
    """One slide cannot be processed; the other slides go on (exit code 1)."""


class RequestError(Exception):
    """The request itself is wrong; nothing was started (exit code 2)."""
