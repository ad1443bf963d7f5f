"""Libraries that are not installed with nanogpt."""

from importlib.util import find_spec

from ..errors import UserError


def require_libraries(purpose: str, *names: str) -> None:
    """Raise UserError if one of these libraries is not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(
            f"{purpose} needs the library {missing[0]}: install it with `pip install "
            f"{' '.join(missing)}`"
        )
