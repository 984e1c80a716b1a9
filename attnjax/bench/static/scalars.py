"""What the instructions of a TPU's scalar unit compute, on numbers of 32 bits and on addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# None is a value that only the device knows.
Value = int | None
# Multiples of it are the beginnings of allocations; no number of 32 bits comes near.
ADDRESS = 1 << 40


def _shift_left(a: int, b: int) -> int:
    # An address in granules becomes one in smaller units: still the same place.
    return a if abs(a) >= ADDRESS // 2 else _unsigned(a << b) if b < 32 else 0


def signed(x: int) -> int:
    """Wraps to 32 bits, except addresses, which are larger."""
    if abs(x) >= ADDRESS // 2:
        return x
    return (x + (1 << 31)) % (1 << 32) - (1 << 31)


def _unsigned(x: int) -> int:
    return x % (1 << 32)


_TWO: dict[str, Callable[[int, int], int]] = {
    "sadd": lambda a, b: a + b,
    "ssub": lambda a, b: a - b,
    "smul": lambda a, b: _unsigned(a * b),
    "smulhi": lambda a, b: _unsigned(a) * _unsigned(b) >> 32,
    "sand": lambda a, b: a & b,
    "sor": lambda a, b: a | b,
    "sxor": lambda a, b: a ^ b,
    "sshll": _shift_left,
    "sshrl": lambda a, b: _unsigned(a) >> b if b < 32 else 0,
    "sshra": lambda a, b: a >> min(b, 31),
    "smin": min,
    "smax": max,
    "scalar_lea": lambda a, b: a + b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_ONE: dict[str, Callable[[int], int]] = {
    "smov": lambda a: a,
    "pmov": lambda a: a,
    "int_to_ptr": lambda a: a,
    "pneg": lambda a: not a,
    "sneg": lambda a: -a,
    "snot": lambda a: ~a,
}


def arithmetic(
    name: str, readers: Sequence[Callable[[list[Value]], Value]]
) -> Callable[[list[Value]], Value]:
    """Returns what computes an instruction; unknown where an operand or the instruction is."""
    parts = name.split(".")
    kind = parts[1] if parts[0] == "scmp" else parts[0]
    unsigned = "u32" in parts
    if kind == "scalar_select":
        condition, yes, no = readers

        def select(values: list[Value]) -> Value:
            chosen = condition(values)
            return None if chosen is None else (yes if chosen else no)(values)

        return select
    if kind in ("por", "pand", "pnand", "pnor", "pxor"):
        first, second = readers
        return lambda values: _logic(kind, first(values), second(values))
    if kind in _ONE and len(readers) == 1:
        one, (only,) = _ONE[kind], readers

        def unary(values: list[Value]) -> Value:
            a = only(values)
            return None if a is None else signed(int(one(a)))

        return unary
    if kind in _TWO and len(readers) == 2:
        two, (left, right) = _TWO[kind], readers

        def binary(values: list[Value]) -> Value:
            a, b = left(values), right(values)
            if a is None or b is None:
                return None
            if unsigned and parts[0] == "scmp":
                a, b = _unsigned(a), _unsigned(b)
            return signed(int(two(a, b)))

        return binary
    return lambda values: None


def _logic(kind: str, a: Value, b: Value) -> Value:
    if kind == "pxor":
        return None if a is None or b is None else int(bool(a) != bool(b))
    conjunction = kind in ("pand", "pnand")
    absorbing = not conjunction
    known = [bool(x) for x in (a, b) if x is not None]
    if absorbing in known:
        result = absorbing
    elif len(known) == 2:
        result = conjunction
    else:
        return None
    return int(result != (kind in ("pnand", "pnor")))
