"""Values as text between two sandboxes: plain types by their kind, everything else as the number of a held object.

A text is a value of JSON and, with `null`, `true` and `false` as names, a Python expression of the same meaning: None,
truth values, whole numbers up to 2**53 and ASCII texts stand for themselves, a list is `[kind, parts...]`. Kinds are
the base types exactly: an instance of a subclass goes as what its base holds, so that no method of it goes along.
"""

from __future__ import annotations

from _json import encode_basestring_ascii

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEEPEST = 60
LONGEST_ITERATOR = 10_000
_EXACT = 2**53


def encode(value: Any, hold: Callable[[Any], int], depth: int = 0) -> str:
    """The text of a value. `hold` numbers what is no plain data. Raises ValueError when it is nested too deeply."""
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    for base in type(value).__mro__:
        if base in _WRITERS:
            return _WRITERS[base](value, lambda part: encode(part, hold, depth + 1))
    if hasattr(type(value), "__next__"):
        found = [part for part, _ in zip(value, range(LONGEST_ITERATOR + 1), strict=False)]
        if len(found) <= LONGEST_ITERATOR:
            return _tagged("iterator", [encode(part, hold, depth + 1) for part in found])
    return _tagged("held", [str(hold(value))])


def _tagged(kind: str, parts: list[str]) -> str:
    return "[" + ",".join([f'"{kind}"', *parts]) + "]"


def _int(value: int, _: Any) -> str:
    plain = int.__index__(value)
    return str(plain) if -_EXACT <= plain <= _EXACT else _tagged("int", [f'"{plain:x}"'])


def _str(value: str, _: Any) -> str:
    plain = str.__str__(value)
    if str.isascii(plain):
        return str(encode_basestring_ascii(plain))
    return _tagged("str", ['"' + str.encode(plain, "utf-8", "surrogatepass").hex() + '"'])


def _float(value: float, _: Any) -> str:
    return _tagged("float", ['"' + float.hex(value) + '"'])


def _complex(value: complex, _: Any) -> str:
    return _tagged("complex", [f'"{float.hex(value.real)}"', f'"{float.hex(value.imag)}"'])


def _range(value: range, _: Any) -> str:
    return _tagged("range", [_int(part, None) for part in (value.start, value.stop, value.step)])


def _many(kind: str, base: Any) -> Callable[[Any, Callable[[Any], str]], str]:
    return lambda value, part: _tagged(kind, [part(each) for each in base.__iter__(value)])


def _dict(value: dict[Any, Any], part: Callable[[Any], str]) -> str:
    return _tagged("dict", [part(each) for pair in dict.items(value) for each in pair])


_WRITERS: dict[type, Callable[[Any, Callable[[Any], str]], str]] = {
    int: _int,
    str: _str,
    float: _float,
    complex: _complex,
    range: _range,
    bytes: lambda value, _: _tagged("bytes", ['"' + bytes.hex(value) + '"']),
    list: _many("list", list),
    tuple: _many("tuple", tuple),
    set: _many("set", set),
    frozenset: _many("frozenset", frozenset),
    dict: _dict,
}


def decode(raw: Any, held: Callable[[int], Any]) -> Any:
    """The value of what a text was parsed to. `held` gives the object of a number.

    Raises ValueError, TypeError or IndexError for what `encode` does not write.
    """
    if raw is None or isinstance(raw, bool | int | str):
        return raw
    kind, *parts = raw
    if kind in _PLAIN:
        return _PLAIN[kind](*parts)
    if kind == "held":
        return held(parts[0])
    values = [decode(part, held) for part in parts]
    if kind == "dict":
        return dict(zip(values[::2], values[1::2], strict=True))
    if kind not in _MADE:
        raise ValueError(f"no kind of value: {kind!r}")
    return _MADE[kind](values)


_PLAIN: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "float": float.fromhex,
    "complex": lambda real, imag: complex(float.fromhex(real), float.fromhex(imag)),
    "range": range,
    "bytes": bytes.fromhex,
}
_MADE: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
}
