"""Find weight files in the Hugging Face cache or download them, and fail fast without a network."""

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

#: Seconds that a host has to accept a connection. Without a network, the hub's own client retries
#: for about 23 s for every file.
PATIENCE = 4.0


def reachable(url: str) -> bool:
    """Return whether the host of `url`, or its proxy, accepts a connection within PATIENCE s."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    # Behind a proxy the host itself is often unreachable, and its name cannot be resolved.
    proxy = (
        None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
    )
    # Proxy settings may lack the scheme, as in `proxy:3128`.
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

    # In a thread, because name resolution ignores the socket's timeout and can take half a minute
    # on a broken network.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(PATIENCE)
    return answered.is_set()


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids the use of the network."""
    # The constant was read when the client was imported; the variable may have been set since.
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {
        "1",
        "ON",
        "YES",
        "TRUE",
    }


def fetch(repository: str, filenames: Sequence[str], *, backbone: str) -> Path:
    """Return the local path of the first of `filenames` that `repository` has.

    Args:
        repository: such as `timm/resnet50.a1_in1k`.
        filenames: in order of preference.
        backbone: name of the backbone, for messages.

    Raises:
        MissingPrerequisite: none is in the cache, and none can be downloaded.
    """
    # The cache first, for all names: `hf_hub_download` sends a request even for a cached file.
    for filename in filenames:
        cached = try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    where = f"backbone {backbone}"
    command = f"hf download {repository}"
    if offline():
        raise MissingPrerequisite(
            f"the weights {repository} are not in the cache, and HF_HUB_OFFLINE forbids downloads",
            where,
            f"with a network: env -u HF_HUB_OFFLINE {command}; or pass a local file: NAME@FILE",
        )
    if not reachable(constants.ENDPOINT):
        raise MissingPrerequisite(
            f"the weights {repository} are not in the cache, and {constants.ENDPOINT} cannot be"
            " reached",
            where,
            f"with a network: {command}; or copy the cache folder {constants.HF_HUB_CACHE} from"
            " another machine; or pass a local file: NAME@FILE",
        )
    problem: Exception | None = None
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        # The repository may have the next file.
        except EntryNotFoundError as error:
            problem = error
        # The client raises its own errors, httpx's and the system's. All mean that there is no
        # download, which the next file would not have either.
        except Exception as error:
            problem = error
            break
    message = (str(problem).strip().splitlines() or ["no reason given"])[0]
    raise MissingPrerequisite(
        f"the weights {repository} cannot be downloaded: {message}", where, command
    ) from problem
