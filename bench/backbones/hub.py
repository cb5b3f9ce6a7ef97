"""Weight files from the Hugging Face hub: cached or downloaded; without a network, one quick
error.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from ..errors import MissingPrerequisite

#: Seconds that a host gets to accept a connection. The hub's own client tries for about 23 s per
#: file.
PATIENCE = 4.0


def reachable(url: str) -> bool:
    """Whether the host of `url`, or the proxy in front of it, accepts a connection within PATIENCE
    seconds.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = (
        None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
    )
    if proxy:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()
            answered.set()
        except OSError:
            pass

    # A thread, because looking up a name obeys no timeout of ours and can take half a minute on a
    # broken network.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(PATIENCE)
    return answered.is_set()


def offline() -> bool:
    """Whether the user told the hub's client not to use the network."""
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {
        "1",
        "ON",
        "YES",
        "TRUE",
    }


def fetch(repository: str, filenames: Sequence[str], *, backbone: str) -> Path:
    """The first of `filenames` that `repository` has, as a local path.

    Args:
        repository: such as `timm/resnet50.a1_in1k`.
        filenames: in order of preference.
        backbone: its name, for messages.

    Raises:
        MissingPrerequisite: none is in the cache, and none can be downloaded.
    """
    for filename in filenames:
        cached = try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    where = f"backbone {backbone}"
    command = f"hf download {repository}"
    if offline():
        raise MissingPrerequisite(
            f"the weights {repository} are not in the cache, and HF_HUB_OFFLINE forbids"
            " downloading",
            where,
            f"with a network: env -u HF_HUB_OFFLINE {command}; or name a local file: NAME@FILE",
        )
    if not reachable(constants.ENDPOINT):
        raise MissingPrerequisite(
            f"the weights {repository} are not in the cache, and {constants.ENDPOINT} cannot be"
            " reached",
            where,
            f"with a network: {command}; or copy the cache folder {constants.HF_HUB_CACHE}; or name"
            " a local file: NAME@FILE",
        )
    problem: Exception | None = None
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except EntryNotFoundError as error:
            problem = error
        # The client raises its own, httpx's and the system's errors; all mean the same here
        except Exception as error:
            problem = error
            break
    message = (str(problem).strip().splitlines() or ["no reason given"])[0]
    raise MissingPrerequisite(
        f"the weights {repository} cannot be downloaded: {message}", where, command
    ) from problem
