"""Runs the tests of a data set, in a sandbox of their own; what they test stands in another one and answers calls."""

from __future__ import annotations

import json

from pipeline.rewards.sandboxed.channel import limit, open_channel
from pipeline.rewards.sandboxed.values import decode, encode

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO


class Foreign:
    """An object that the tested program keeps; it equals only itself and can only be handed back."""

    def __init__(self, number: int) -> None:
        self.number = number


class Failed(Exception):
    """A call of the tested program that gave no value."""


class Program:
    """The tested program, by way of the process that started both."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.objects: dict[int, Foreign] = {}

    def say(self, word: str, text: str) -> None:
        """Send one line."""
        self.outgoing.write((word + text).encode() + b"\n")
        self.outgoing.flush()

    def function(self, name: str) -> Callable[..., Any]:
        """What stands for a function or class of the program."""

        def call(*positional: Any, **named: Any) -> Any:
            self.say("calls", encode([name, positional, named], _number))
            line = self.incoming.readline()
            told = json.loads(line[5:], parse_float=_refuse, parse_constant=_refuse)
            if line[:5] != b"value":
                raise Failed(str(told))
            return decode(told, self.foreign)

        return call

    def foreign(self, number: Any) -> Foreign:
        """The object of a number, always the same one."""
        return self.objects.setdefault(int(number), Foreign(int(number)))


def _number(value: Any) -> int:
    if isinstance(value, Foreign):
        return value.number
    raise TypeError(f"a {type(value).__name__} cannot be handed to the program")


def _refuse(text: str) -> Any:
    raise ValueError(f"not a value: {text}")


def run(request: dict[str, Any], program: Program) -> list[list[Any]]:
    """[passed, why not] for each test of {context, names, statements}; a statement is [source, whether it is a test].

    `context` is run first; `names` are then what the program defines, by the names that the tests use.
    """
    scope: dict[str, Any] = {"__name__": "tests"}
    verdicts: list[list[Any]] = []
    exec(request["context"], scope)
    scope |= {local: program.function(name) for local, name in request["names"].items()}
    for source, is_test in request["statements"]:
        why = ""
        try:
            exec(source, scope)
        except BaseException as error:  # a test fails by whatever it raises
            why = f"{source[:200]}: {type(error).__name__} {str(error)[:200]}"
        if is_test:
            verdicts.append([not why, why])
    return verdicts


def main() -> None:
    """Read {limits}, then requests, each a line; call the program for each and give the verdicts."""
    incoming, outgoing = open_channel()
    limit(json.loads(incoming.readline())["limits"])
    for line in incoming:
        program = Program(incoming, outgoing)
        try:
            verdicts: Any = run(json.loads(line), program)
        except BaseException as error:  # the context of these tests itself is broken
            verdicts = f"{type(error).__name__}: {str(error)[:200]}"
        program.say("tests", json.dumps(verdicts))


if __name__ == "__main__":
    main()
