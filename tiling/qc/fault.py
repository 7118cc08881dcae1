"""What is only looked at must never cost a slide, or the run, that is done."""

from collections.abc import Callable


def fault_of(draw: Callable[[], None], what: str) -> str:
    """Draw; why that failed, or nothing."""
    try:
        draw()
    except Exception as error:
        return f"{what} was not made ({type(error).__name__}: {error})"
    return ""
