"""Numbers and counts as the page writes them."""

import math

from .values import Interval

LARGEST = 9  # power of ten up to which people write zeros


def number(value: float, digits: int = 3) -> str:
    """Return a number of these digits, zeros at its end among them, without an exponent where people write none."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -LARGEST <= magnitude <= LARGEST:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - magnitude)
    return f"{value:,.{decimals}f}"


def with_interval(found: Interval | None, digits: int = 3, scale: float = 1, unit: str = "") -> str:
    """Return a number and the ends of its interval; nothing where the number is not known."""
    if found is None:
        return ""
    text = number(scale * found.value, digits)
    if found.low is not None and found.high is not None and found.low != found.high:
        text += f" ({number(scale * found.low, digits)} to {number(scale * found.high, digits)})"
    return text + unit


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def whole(n: float) -> str:
    """Return a whole number with commas between thousands."""
    return f"{n:,.0f}"


def mebibytes(n: float) -> str:
    return f"{n / 2**20:,.2f} MiB"
