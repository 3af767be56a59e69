"""The program in a completion: the fenced block, or the text itself."""

from __future__ import annotations

import re

from pipeline.tasks.math_answers import final_part

_FENCED = re.compile(r"^[^\S\n]*```[^\S\n]*(?P<word>[\w+#.-]*)[^\n]*\n(?P<code>.*?)(?:^[^\S\n]*```|\Z)", re.M | re.S)
_OTHER_LANGUAGES = ("bash", "console", "json", "output", "plaintext", "sh", "shell", "text", "txt")


def program_of(completion: str, name: str | None = None) -> str | None:
    """The last fenced block that defines `name`, else the last one of a program, else the text; None when blank.

    Blocks of a shell or of output are no programs; a block that is never closed goes on to the end.
    """
    text = final_part(completion)
    blocks = [each["code"] for each in _FENCED.finditer(text) if each["word"].lower() not in _OTHER_LANGUAGES]
    defining = [code for code in blocks if name and defines(code, name)]
    code = (defining or blocks or [text])[-1]
    return code if code.strip() else None


def defines(code: str, name: str) -> bool:
    """Whether a line of the code, not indented, defines a function, a class or a value of this name."""
    word = re.escape(name)
    return bool(re.search(rf"^(?:(?:async\s+)?def\s+{word}\s*\(|class\s+{word}\b|{word}\s*(?::[^=\n]*)?=)", code, re.M))
