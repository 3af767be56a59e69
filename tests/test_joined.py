"""How the processes of one launch find each other, and what of their environment a stage of one process keeps."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from pipeline.records import write_json
from pipeline.training.joined import is_started, launcher_of, meeting_key, wait, without_group

GROUP = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_a_process_knows_whether_a_launcher_started_it() -> None:
    assert is_started(GROUP) and not is_started({**GROUP, "MASTER_PORT": ""}) and not is_started({"RANK": "0"})
    assert launcher_of(GROUP) == "torchrun" and launcher_of({"ACCELERATE_MIXED_PRECISION": "no"}) == "accelerate"


def test_the_ranks_of_a_launch_share_its_key() -> None:
    here = os.getpid()
    assert meeting_key(GROUP, here) == meeting_key({**GROUP, "RANK": "0", "LOCAL_RANK": "0"}, here)
    assert meeting_key(GROUP, here) != meeting_key(GROUP, os.getppid())
    assert meeting_key({**GROUP, "LOCAL_WORLD_SIZE": "2"}, here) == meeting_key(GROUP, here)


def test_over_nodes_the_place_where_they_meet_is_the_key() -> None:
    over = {**GROUP, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert meeting_key(over, os.getpid()) == meeting_key({**over, "RANK": "3"}, os.getppid())
    assert meeting_key(over, os.getpid()) != meeting_key({**over, "MASTER_PORT": "2"}, os.getpid())


def test_what_an_earlier_launch_said_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "meeting"
    write_json(path, {"stage": "old"})
    os.utime(path, (1, 1))
    writer = threading.Timer(0.5, write_json, (path, {"stage": "new"}))
    writer.start()
    assert wait(path, time.time()) == {"stage": "new"}
    writer.join()


def test_one_process_is_in_no_group() -> None:
    more = {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "ACCELERATE_USE_CPU": "1", "LOCAL_SIZE": "2"}
    assert without_group({**GROUP, **more, "HOME": "h"}) == {"HOME": "h"}
