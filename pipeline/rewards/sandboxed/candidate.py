"""Runs a model's program and answers calls of what it defines. Whatever it does, all that leaves is text."""

from __future__ import annotations

import sys
from _json import encode_basestring_ascii

from pipeline.rewards.sandboxed.channel import limit, open_channel
from pipeline.rewards.sandboxed.values import decode, encode

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here
if TYPE_CHECKING:
    from typing import Any

NAMES = {"null": None, "true": True, "false": False}
MOST_TRIMMED = 100
"""Lines that may be taken off the end of a text until it is a program."""


class Held:
    """Objects that are no plain data, by number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def hold(self, value: Any) -> int:
        """The number of an object."""
        for number, each in enumerate(self.objects):
            if each is value:
                return number
        self.objects.append(value)
        return len(self.objects) - 1


def load(source: str, trim: bool) -> dict[str, Any]:
    """What the program defines; with `trim`, of the longest beginning of the text that is a program."""
    module = type(sys)("completion")
    sys.modules["completion"] = module
    lines = source.split("\n")
    for dropped in range(min(MOST_TRIMMED, len(lines)) if trim else 1):
        try:
            code = compile("\n".join(lines[: len(lines) - dropped]), "<completion>", "exec")
            break
        except SyntaxError as error:
            if dropped == 0:
                first = error
    else:
        raise first
    exec(code, module.__dict__)
    return module.__dict__


def main() -> None:
    """Read {limits, source, trim}, then calls [name, arguments, named arguments], each a line; answer each."""
    incoming, outgoing = open_channel()
    request = eval(incoming.readline(), {})
    limit(request["limits"])
    failure: BaseException | None = None
    defined: dict[str, Any] = {}
    try:
        defined = load(request["source"], request["trim"])
    except BaseException as error:  # untrusted code may raise anything; it is what the calls will be told
        failure = error
    held = Held()
    for line in incoming:
        try:
            if failure is not None:
                raise failure
            name, positional, named = decode(eval(line, dict(NAMES)), held.objects.__getitem__)
            reply = "value" + encode(defined[name](*positional, **named), held.hold)
        except BaseException as error:
            reply = "error" + encode_basestring_ascii(f"{type(error).__name__}: {str(error)[:200]}")
        outgoing.write(reply.encode() + b"\n")
        outgoing.flush()


if __name__ == "__main__":
    main()
