"""The endpoint client against real servers on loopback: one that answers, and all the ways in which one fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Answer, Server, completion

from pipeline.causal.files import save
from pipeline.causal.generate import sample
from pipeline.errors import StageFailed, UserError
from pipeline.evaluation.endpoint import Endpoint, complete_remotely
from pipeline.evaluation.generate import Completion
from pipeline.recipe_data import Data
from pipeline.run import HOME
from pipeline.tasks.teacher import read_teacher, taught

KEY = "sk-planted-5f2e7d1c9b"
Serve = Callable[[Callable[[str, int], Answer | None]], Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started: list[Server] = []

    def start(answer: Callable[[str, int], Answer | None]) -> Server:
        started.append(Server(answer))
        return started[-1]

    yield start
    for each in started:
        each.close()


def endpoint(server: Server, **changes: Any) -> Endpoint:
    return Endpoint(server.url, "m", **{"wait": 0.01, "tries": 4, "timeout": 20.0, **changes})


def test_answers_in_order_with_their_tokens(serve: Serve) -> None:
    server = serve(lambda text, _: (200, {}, completion(f"{text}! Therefore: Yes")))
    asked = [f"row {place}" for place in range(30)]
    batches: list[dict[int, Completion]] = []
    found = complete_remotely(
        endpoint(server, key=KEY, extra={"max_tokens": None, "top_p": 0.9}), asked,
        known={3: Completion("kept", 1, True)}, on_batch=batches.append,
    )  # fmt: skip
    assert [each.text for each in found] == [
        "kept" if place == 3 else f"{text}! Therefore: Yes" for place, text in enumerate(asked)
    ]
    assert (found[0].tokens, found[0].prompt_tokens, found[0].ended) == (3, 10, True)
    assert sorted(place for made in batches for place in made) == [place for place in range(30) if place != 3]
    assert server.keys == {f"Bearer {KEY}"}
    assert server.bodies[0] == {
        "model": "m", "messages": [{"role": "user", "content": server.asked[0]}], "temperature": 0.0, "seed": 42,
        "top_p": 0.9,
    }  # fmt: skip


def test_as_many_requests_at_once_as_asked_for(serve: Serve) -> None:
    gate = threading.Barrier(4)

    def answer(text: str, before: int) -> Answer:
        gate.wait(timeout=30)  # passes only when four are inside
        return 200, {}, completion("No")

    server = serve(answer)
    complete_remotely(endpoint(server, concurrency=4), [str(i) for i in range(12)])
    assert server.most_at_once == 4


FAULTS: dict[str, Callable[[], Answer | None]] = {
    "429": lambda: (429, {"Retry-After": "0"}, b"slow down"),
    "500": lambda: (500, {}, b"oops"),
    "503 in HTML": lambda: (503, {}, b"<html>"),
    "cut JSON": lambda: (200, {}, completion("Yes")[:40]),
    "cut body": lambda: (200, {"Content-Length": "500"}, completion("Yes")[:40]),
    "no choices": lambda: (200, {}, b'{"error": "overloaded"}'),
    "not an object": lambda: (200, {}, b"[]"),
    "empty": lambda: (200, {}, b""),
    "hangs up": lambda: None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(serve: Serve, fault: str) -> None:
    """Each question fails twice, differently from the next one's tries, and is answered the third time."""
    server = serve(lambda text, before: FAULTS[fault]() if before < 2 else (200, {}, completion(f"{text} No")))
    found = complete_remotely(endpoint(server, concurrency=3), ["a", "b", "c", "d"])
    assert [each.text for each in found] == ["a No", "b No", "c No", "d No"]
    assert len(server.asked) == 12


def test_a_slow_server_is_given_up_row_by_row(serve: Serve) -> None:
    def answer(text: str, before: int) -> Answer:
        if before == 0:
            time.sleep(1.5)
        return 200, {}, completion("Yes")

    server = serve(answer)
    assert complete_remotely(endpoint(server, timeout=0.7), ["a"])[0].text == "Yes"
    assert server.asked == ["a", "a"]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_cannot_pass_is_told_at_once_and_without_the_key(serve: Serve, status: int) -> None:
    server = serve(lambda text, before: (status, {}, f"wrong key {KEY}".encode()))
    with pytest.raises(UserError, match=f"the server refuses the request: 'status {status}: wrong key") as told:
        complete_remotely(endpoint(server, key=KEY, concurrency=1), ["a", "b"])
    assert KEY not in str(told.value)
    assert server.asked == ["a"]


def test_a_server_that_goes_keeps_what_it_answered(serve: Serve) -> None:
    gone = threading.Event()

    def answer(text: str, before: int) -> Answer | None:
        if len(server.asked) > 5:
            gone.set()
        return None if gone.is_set() else (200, {}, completion(text))

    server = serve(answer)
    asked = [str(place) for place in range(12)]
    kept: dict[int, Completion] = {}
    with pytest.raises(StageFailed, match=r"no answer in 4 tries.*the same command goes on from there"):
        complete_remotely(endpoint(server, concurrency=2), asked, on_batch=kept.update)
    assert 0 < len(kept) < 12
    server.asked.clear()
    again = serve(lambda text, before: (200, {}, completion(text)))
    found = complete_remotely(endpoint(again), asked, known=kept)
    assert [each.text for each in found] == asked
    assert len(again.asked) == 12 - len(kept)


def test_reasoning_apart_stands_in_think_tags_and_a_cut_answer_is_no_end(serve: Serve) -> None:
    said = {"role": "assistant", "content": "Therefore: No", "reasoning_content": "Hm. Yes?"}
    server = serve(lambda text, before: (200, {}, completion("", message=said, finish_reason="length")))
    found = complete_remotely(endpoint(server), ["a"])[0]
    assert (found.text, found.ended) == ("<think>\nHm. Yes?\n</think>\nTherefore: No", False)


@pytest.mark.parametrize(
    ("url", "key", "part"),
    [
        ("localhost:8000", "", "not the address of a server"),
        ("http://user:pass@host/v1", "", "more than an address"),
        ("http://host/v1?api_key=x", "", "more than an address"),
        ("http://host/v1", "sk-1\nsk-2", "the key has blanks"),
    ],
)
def test_bad_addresses_and_keys_are_refused_without_being_shown(url: str, key: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as told:
        Endpoint(url, "m", key)
    assert not [secret for secret in ("pass@", "api_key", "sk-1") if secret in str(told.value)]


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import pipeline.cluster as c; c.output_root = lambda _: __import__('pathlib').Path({str(folder)!r})\n"
    code += "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=HOME, env={**os.environ, **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def rows_file(path: Path, count: int) -> Path:
    rows = sample("train", [3, 4], count, 2)
    save(path, iter((row.input, row.label, row.num_variables, row.template) for row in rows), "csv")
    return path


def test_the_verb_writes_what_teaches_and_no_key(serve: Serve, tmp_path: Path) -> None:
    """Killed in the middle, it goes on; its file is one that preprocess reads."""
    rows = rows_file(tmp_path / "rows.csv", 20)
    failing = threading.Event()
    failing.set()

    def answer(text: str, before: int) -> Answer:
        if failing.is_set() and len(server.asked) > 10:
            return 500, {}, b"down"
        return 200, {}, completion("A and B. Therefore: No")

    server = serve(answer)
    words = ["evaluate", "--endpoint", server.url, "--model", "org/big model", "--data", str(rows), "--price", "1,2",
             "--tries", "1", "--concurrency", "1"]  # fmt: skip
    done = call(tmp_path, *words, OPENAI_API_KEY=KEY)
    assert done.returncode == 1 and "row 10" in done.stderr, done.stderr
    failing.clear()
    done = call(tmp_path, *words, "--json", OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(server.asked) == 21  # ten, the one that failed, the other ten
    path = Path(told["predictions"])
    assert path.parent == tmp_path / "evaluation_results" and path.match("gpt_predictions_org_big_model_*Z.json")
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value["header"]["usage"] == {"prompt_tokens": 200, "completion_tokens": 60, "cost": 0.00032}
    assert len(value["predictions"]) == 20 and value["predictions"][0]["prompt"] in server.asked
    assert [each.row for each in read_teacher(path)] == list(range(20))
    data = Data(source=str(rows), completions="teacher", teacher=str(path), labels="released", max_variables=6)
    assert taught(data, set()).counts["used"] == sum(each["label"] == 0 for each in value["predictions"])
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert not [each for each in files if KEY.encode() in each.read_bytes()] and KEY not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], "a server is asked for a model"),
        (
            ["--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--data", "x.csv", "--run-name", "r"],
            "of a run or",
        ),
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--data", "none.csv"], "no such data file"),
        (["--endpoint", "http://h/v1", "--model", "m", "--data", "x.csv", "--extra", "[1]"], "not a JSON object"),
    ],
)
def test_words_that_do_not_fit_together(words: list[str], part: str, tmp_path: Path) -> None:
    done = call(tmp_path, "evaluate", *words)
    assert done.returncode == 2 and part in done.stderr


SERVING = all(importlib.util.find_spec(each) for each in ("fastapi", "uvicorn", "openai"))


@pytest.mark.long
@pytest.mark.skipif(not SERVING, reason="`transformers serve` needs fastapi, uvicorn and openai")
def test_a_real_model_behind_transformers_serve(tmp_path: Path) -> None:
    from pipeline.recipe import ScratchModel
    from pipeline.training.launchers import free_port
    from pipeline.training.scratch import save_scratch

    save_scratch(ScratchModel(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2,
                              max_position_embeddings=4096), ["A causes B."] * 4, tmp_path / "model", 1)  # fmt: skip
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"})
    try:
        rows = rows_file(tmp_path / "rows.csv", 3)
        words = ["evaluate", "--endpoint", f"http://127.0.0.1:{port}/v1", "--model", str(tmp_path / "model"),
                 "--data", str(rows), "--max-tokens", "8", "--concurrency", "1"]  # fmt: skip
        done = call(tmp_path, *words, NO_PROXY="127.0.0.1")
        assert done.returncode == 0, done.stderr
    finally:
        server.terminate()
        server.wait()
    value = json.loads(next(tmp_path.glob("evaluation_results/gpt_predictions_*")).read_text(encoding="utf-8"))
    assert len(value["predictions"]) == 3
