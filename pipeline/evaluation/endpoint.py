"""Asking an OpenAI-compatible server for chat completions: at once, again, nothing lost on the way."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipeline.errors import StageFailed, UserError
from pipeline.evaluation.generate import Completion, Progress

AGAIN = {408, 409, 425, 429}
"""Statuses, besides those from 500 on, after which the same request may well succeed."""
LONGEST_WAIT = 60.0
"""Seconds between two tries of one row, unless the server asks for more."""


@dataclass(frozen=True)
class Endpoint:
    """A server, the model to ask there, and how."""

    url: str
    """With its version, such as http://localhost:8000/v1."""
    model: str
    key: str = field(default="", repr=False)
    temperature: float = 0.0
    max_tokens: int = 2048
    seed: int = 42
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the request; those that are null are left out of it."""
    concurrency: int = 8
    tries: int = 8
    timeout: float = 600.0
    """Seconds for one request as a whole."""
    wait: float = 1.0
    """Seconds before the second try; twice as many before each further one."""

    def __post_init__(self) -> None:
        """Raises UserError for an address that is none, or that holds a secret, and for a key that is none."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("not the address of a server", value=parts.hostname, where="--endpoint",
                            do="write it like http://localhost:8000/v1")  # fmt: skip
        if parts.username or parts.password or parts.query:
            raise UserError("the address holds more than an address", where="--endpoint",
                            do="leave name, password and query out; the key comes from the environment")  # fmt: skip
        if not re.fullmatch(r"[!-~]*", self.key):
            raise UserError("the key has blanks or characters that no key has", where="the environment variable of "
                            "--key-env", do="set it again")  # fmt: skip

    @property
    def address(self) -> str:
        """Where requests go."""
        bare = self.url.rstrip("/")
        return bare if bare.endswith("/chat/completions") else f"{bare}/chat/completions"


def key_of_environment(variable: str) -> str:
    """The key in an environment variable, "" when there is none: a server of one's own needs none."""
    return os.environ.get(variable, "").strip()


def complete_remotely(
    endpoint: Endpoint,
    messages: Sequence[str],
    *,
    progress: str = "",
    known: Mapping[int, Completion] | None = None,
    on_batch: Callable[[dict[int, Completion]], None] | None = None,
) -> list[Completion]:
    """The server's completion for each user message, in their order; `known` ones, by place, are not asked again.

    `on_batch` gets each one as it comes. Raises UserError when the server refuses a request for good, StageFailed when
    a row fails `tries` times: what was answered until then went through `on_batch`.
    """
    found = dict(known or {})
    told = Progress(progress, len(messages))

    def keep(place: int, one: Completion) -> None:
        found[place] = one
        if on_batch:
            on_batch({place: one})
        told(len(found))

    todo = ((place, text) for place, text in enumerate(messages) if place not in found)
    asyncio.run(_ask_all(endpoint, todo, keep))
    return [found[place] for place in range(len(messages))]


async def _ask_all(
    endpoint: Endpoint, todo: Iterator[tuple[int, str]], keep: Callable[[int, Completion], None]
) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)

    async def work(client: httpx.AsyncClient) -> None:
        for place, text in todo:  # one iterator for all: each takes the next row
            keep(place, await _ask(endpoint, client, place, text))

    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=None) as client:
        workers = [asyncio.create_task(work(client)) for _ in range(endpoint.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _ask(endpoint: Endpoint, client: httpx.AsyncClient, place: int, text: str) -> Completion:
    """One row, tried again with growing pauses while what goes wrong may pass."""
    wrong = ""
    for attempt in range(endpoint.tries):
        wanted = 0.0
        try:
            async with asyncio.timeout(endpoint.timeout):
                answer = await client.post(endpoint.address, json=_request(endpoint, text))
            if answer.status_code == 200:
                return _completion(answer.json())
            wrong = _hidden(endpoint, f"status {answer.status_code}: {answer.text[:200]}")
            if answer.status_code not in AGAIN and answer.status_code < 500:
                raise UserError("the server refuses the request", value=wrong, where=endpoint.url,
                                do="check --model, the key and --extra")  # fmt: skip
            wanted = _asked_to_wait(answer)
        except TimeoutError:
            wrong = f"no answer within {endpoint.timeout:g} s"
        except (httpx.TransportError, httpx.DecodingError) as error:
            wrong = _hidden(endpoint, f"{type(error).__name__}: {error}")
        except (json.JSONDecodeError, UnicodeDecodeError, _NotAnAnswer) as error:
            wrong = f"an answer that is cut or none: {error}"
        if attempt + 1 < endpoint.tries:
            pause = min(LONGEST_WAIT, endpoint.wait * 2**attempt) * (0.5 + random.random() / 2)
            await asyncio.sleep(max(pause, wanted))
    raise StageFailed(
        f"the endpoint gave no answer in {endpoint.tries} tries, the last time", value=wrong,
        where=f"row {place}, {endpoint.url}", do="what was answered is kept: the same command goes on from there",
    )  # fmt: skip


class _NotAnAnswer(Exception):
    """JSON of another shape than a chat completion."""


def _request(endpoint: Endpoint, text: str) -> dict[str, Any]:
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "seed": endpoint.seed,
        **endpoint.extra,
    }
    return {key: value for key, value in body.items() if value is not None}


def _completion(answer: Any) -> Completion:
    """The completion in a server's answer; reasoning that it gives apart stands in think tags before it."""
    try:
        choice = answer["choices"][0]
        said = choice["message"]
        text, thought = said.get("content") or "", said.get("reasoning_content") or said.get("reasoning") or ""
        usage = answer.get("usage") or {}
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _NotAnAnswer(f"{type(error).__name__} in {str(answer)[:120]}") from None
    if not isinstance(text, str) or not isinstance(thought, str) or not (text or thought or finish):
        raise _NotAnAnswer(str(answer)[:120])
    whole = f"<think>\n{thought}\n</think>\n{text}" if thought else text
    return Completion(
        whole, int(usage.get("completion_tokens") or 0), finish != "length",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
    )  # fmt: skip


def _asked_to_wait(answer: httpx.Response) -> float:
    """Seconds of a Retry-After header, at most five minutes."""
    told = answer.headers.get("retry-after", "")
    return min(float(told), 300.0) if re.fullmatch(r"\d+(\.\d+)?", told) else 0.0


def _hidden(endpoint: Endpoint, text: str) -> str:
    """A text of the server's without our key, should it repeat it."""
    return text.replace(endpoint.key, "***") if endpoint.key else text
