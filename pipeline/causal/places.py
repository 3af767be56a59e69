"""Where in a completion each judged claim is decided, so that credit can be given token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.causal.trace import HEADS

_HEAD = re.compile(rf"\b(?:{'|'.join(HEADS)}):")


def decided_at(text: str, claims: Sequence[str]) -> list[int]:
    """For each claim, in the order in which they were judged, the characters of `text` written when it is decided.

    A statement is decided where it ends. A section as a whole (`Edges:`) is decided where the next head ends: that is
    what closed it. A claim that stands nowhere, a missing section for one, is decided with the last character.
    """
    heads = [(match[0], match.start(), match.end()) for match in _HEAD.finditer(text)]
    found: list[int] = []
    start, end, after = 0, len(text), len(text)
    for claim in claims:
        number = next((i for i, head in enumerate(heads) if head[0] == claim), None)
        if number is not None:
            following = heads[number + 1 :]
            start = heads[number][2]
            end, after = following[0][1:] if following else (len(text), len(text))
            found.append(after)
            continue
        match = re.compile(r"\s+".join(map(re.escape, claim.split())) + ";?").search(text, start, end)
        match = match or re.compile(r"\s+".join(map(re.escape, claim.split())) + ";?").search(text)
        found.append(match.end() if match else len(text))
        if match and match.end() <= end:
            start = match.end()
    return found
