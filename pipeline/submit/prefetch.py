"""Brings what a recipe takes from the hub into the cache, on a machine with network, and records the commits."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster import ClusterFile, variables
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.records import cannot_write, remove
from pipeline.run import RunDir, now
from pipeline.training.hub import OFFLINE, Item, hub_cache, hub_items, write_prefetched

MODEL_FILES = (".json", ".jinja", ".txt", ".model")
"""Ends of the names of a model's files beside its weights; the rest (pictures, other frameworks) stays on the hub."""
WEIGHTS = (".safetensors", ".bin")
"""Ends of the names of weights, the preferred first: one kind is enough."""


@dataclass(frozen=True)
class Fetched:
    """One model or data set that is in the cache now. `size` in bytes."""

    kind: str
    name: str
    revision: str
    commit: str
    files: int
    size: int
    folder: str

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def prefetch(recipe: Recipe, run: RunDir, cluster: ClusterFile) -> list[Fetched]:
    """Bring all that a recipe takes from the hub into the cache that its jobs will read; check and record each file.

    Raises UserError when the hub does not answer or has no such thing, or a file is not what the hub says.
    """
    _go_online(cluster)
    return [_fetch(item, run) for item in hub_items(recipe)]


def _go_online(cluster: ClusterFile) -> None:
    """Take the jobs' variables but those that keep them offline, before the hub's library reads them once for all."""
    stored = hub_cache(os.environ).parent / "token"
    if "HF_TOKEN" not in os.environ and stored.is_file():
        os.environ.setdefault("HF_TOKEN_PATH", str(stored))  # a login stays where it was when the caches move
    os.environ.update(variables(cluster))
    for name in OFFLINE:
        os.environ.pop(name, None)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _fetch(item: Item, run: RunDir) -> Fetched:
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    api, where = HfApi(), f"{item.key}; {os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}"
    asked = f"{item.name} at {item.revision}"
    try:
        commit = str(api.repo_info(item.name, repo_type=item.kind, revision=item.revision).sha)
        listed = api.list_repo_tree(item.name, repo_type=item.kind, revision=commit, recursive=True)
        files = {each.path: each for each in listed if hasattr(each, "size")}
        names = chosen_files(item.kind, files)
        folder = Path(snapshot_download(item.name, repo_type=item.kind, revision=commit, allow_patterns=names))
    except GatedRepoError as error:
        do = "accept its conditions on the hub and log in (`hf auth login`), or export HF_TOKEN"
        raise UserError("the hub wants a login", value=asked, where=where, do=do) from error
    except HfHubHTTPError as error:
        told = str(error).strip().splitlines()[-1][:150]
        raise UserError("the hub refuses", value=asked, where=f"{where} ({told})", do="check the name") from error
    except (httpx2.TransportError, LocalEntryNotFoundError) as error:
        do = "run `prefetch` on a machine with network that shares the cache, such as the login node"
        raise UserError("the hub does not answer", value=asked, where=where, do=do) from error
    except OSError as error:
        raise cannot_write(hub_cache(os.environ), error) from error
    for name in names:
        _verify(folder / name, files[name])
    sizes = {name: files[name].size for name in names}
    write_prefetched(run, item, commit, sizes, now())
    return Fetched(item.kind, item.name, item.revision, commit, len(names), sum(sizes.values()), str(folder))


def chosen_files(kind: str, names: Iterable[str]) -> list[str]:
    """The files that stages read: all of a data set; a model's weights in one format, its settings, its tokenizer."""
    found = sorted(name for name in names if not name.startswith(".git"))
    if kind == "dataset":
        return found
    top = [name for name in found if "/" not in name]
    weights = next((end for end in WEIGHTS if any(name.endswith(end) for name in top)), WEIGHTS[0])
    return [name for name in top if name.endswith((*MODEL_FILES, weights))]


def _verify(path: Path, told: Any) -> None:
    """That a file is what the hub says. A broken one is deleted, so that the next `prefetch` brings it anew."""
    good = path.is_file() and path.stat().st_size == told.size
    if good and _hash(path, sha256=told.lfs is not None) == (told.lfs.sha256 if told.lfs else told.blob_id):
        return
    remove([path.resolve(), path])
    raise UserError("a file is not what the hub says", value=path.name, where=str(path), do="`prefetch` again")


def _hash(path: Path, *, sha256: bool) -> str:
    """A file's hash as the hub keeps it: SHA-256 for large files, git's own for others."""
    digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
