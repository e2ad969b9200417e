"""Shards on HTTP(S) servers and S3-compatible stores, through fsspec: sizes, ranges of bytes, and reading ahead.

Only the schemes below are known; no chain of fsspec's, no pipe. Each request has time limits, asks for a range and is
held to it, and follows no redirect to another scheme or from a public address to a private one. Errors come as
OSError, so that `ShardFile` tries again as it does with a disk. What follows the chunk that is read is fetched by a
few threads for the whole process, into a cache of a fixed number of chunks.
Credentials come from where the store's own client looks for them (AWS_* variables, ~/.aws), never from a config: an
address with a password is refused, one with a query (a signed URL) only stands in a list file, and what is logged or
written down is the address without either.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

SCHEMES = ("http", "https", "s3")
EXTRAS = {"http": "remote", "https": "remote", "s3": "s3"}
"""The extra of ours that installs what fsspec needs for a scheme."""
CONNECT_S = 10.0
"""Limit for a connection."""
SILENCE_S = 30.0
"""Limit for a server that says nothing."""
REQUEST_S = 300.0
"""Limit for a whole request."""
CHUNK = 4 << 20
"""Bytes fetched at a time."""
MAX_CHUNKS = 48
"""Chunks kept, over all shards of the process: 192 MiB."""
LONGEST_AHEAD = 8
"""Chunks of the longest read that goes through them; a longer one (a video) is one request."""
THREADS = 4
"""Requests at a time that read ahead."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ANSWERS = {400: errno.EINVAL, 401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT,
            416: errno.EINVAL}  # fmt: skip
"""HTTP answers that asking again does not change."""


def is_remote(path: str) -> bool:
    return path.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def shown(path: str) -> str:
    """The address as it may be logged: without password, query and fragment."""
    if "://" not in path:
        return path
    parts = urlsplit(path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check(source: str, url: str, *, listed: bool) -> None:
    """ValueError for credentials in a place from which they would be copied and logged."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(
            f"source {source!r}: the address {shown(url)!r} has a user or password in it; leave them to the store's "
            "own settings (AWS_* variables, ~/.aws), or list signed URLs in a file: shards='@list.txt'"
        )
    if parts.query and not listed and parts.scheme != "s3":
        raise ValueError(
            f"source {source!r}: the address {shown(url)!r} has a query, which may be a signature and would be "
            "copied to config.yaml; list such URLs in a file: shards='@list.txt'"
        )


def matches(source: str, pattern: str) -> list[str]:
    """Objects that a glob on a store stands for."""
    if not pattern.startswith("s3://"):
        raise ValueError(
            f"source {source!r}: {shown(pattern)!r}: HTTP lists no folder; name shards by braces or a list"
        )
    system = _system("s3")
    try:
        return [f"s3://{name}" for name in _call(system, system._glob, _address(pattern))]
    except Exception as error:
        raise _os_error(error, pattern) from None


def stat(url: str) -> tuple[int, str]:
    """(bytes, a mark that changes when the content does)."""
    system = _system(urlsplit(url).scheme)
    try:
        info = _call(system, system._info, _address(url))
    except Exception as error:
        raise _os_error(error, url) from None
    if info.get("size") is None or info.get("partial") is False:
        raise OSError(errno.EINVAL, "the server tells no size or serves no ranges; copy the shards", shown(url))
    mark = next((str(info[name]) for name in ("ETag", "Last-Modified", "LastModified") if info.get(name)), "")
    return int(info["size"]), mark


def fetch(url: str, offset: int, length: int) -> bytes:
    """The bytes at `offset`, all of them: one request."""
    system = _system(urlsplit(url).scheme)
    try:
        content: bytes = _call(system, system._cat_file, _address(url), start=offset, end=offset + length)
    except Exception as error:
        raise _os_error(error, url) from None
    if len(content) != length:
        raise OSError(errno.EIO, f"{len(content)} bytes came instead of {length} at byte {offset}", shown(url))
    return content


def download(url: str, limit: int) -> bytes | None:
    """A small file whole, in one request; None if there is none. OSError if it has more than `limit` bytes."""
    system = _system(urlsplit(url).scheme)
    try:
        content: bytes = _call(system, system._cat_file, _address(url), start=0, end=limit + 1)
    except Exception as error:
        problem = _os_error(error, url)
        if isinstance(problem, FileNotFoundError):
            return None
        raise problem from None
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is too large: the limit is {limit} bytes", shown(url))
    return content


class ReadAhead:
    """Chunks of all shards of this process, the last used ones, and those that will be asked for next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[str, str, int], Future[bytes]] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None

    def read(self, url: str, mark: str, size: int, offset: int, length: int) -> bytes:
        """The bytes at `offset`, fewer only at the end of the `size` bytes. The chunk after them is fetched too."""
        end = min(offset + length, size)
        if offset >= end:
            return b""
        if end - offset > LONGEST_AHEAD * CHUNK:
            return fetch(url, offset, end - offset)
        numbers = range(offset // CHUNK, (end - 1) // CHUNK + 1)
        waiting = [self._chunk(url, mark, size, number) for number in numbers]
        if (numbers[-1] + 1) * CHUNK < size:
            self._chunk(url, mark, size, numbers[-1] + 1)
        parts = [self._wait(url, mark, number, chunk) for number, chunk in zip(numbers, waiting, strict=True)]
        begin = numbers[0] * CHUNK
        return b"".join(parts)[offset - begin : end - begin]

    def _chunk(self, url: str, mark: str, size: int, number: int) -> Future[bytes]:
        key = (url, mark, number)
        with self._lock:
            if key not in self._chunks:
                self._threads = self._threads or ThreadPoolExecutor(THREADS, thread_name_prefix="data-remote")
                start = number * CHUNK
                self._chunks[key] = self._threads.submit(fetch, url, start, min(CHUNK, size - start))
                while len(self._chunks) > MAX_CHUNKS:
                    self._chunks.popitem(last=False)  # whoever waits for it still has it
            self._chunks.move_to_end(key)
            return self._chunks[key]

    def _wait(self, url: str, mark: str, number: int, chunk: Future[bytes]) -> bytes:
        try:
            return chunk.result(timeout=REQUEST_S * 2)
        except BaseException as error:
            with self._lock:  # so that a new try asks again
                self._chunks.pop((url, mark, number), None)
            if isinstance(error, OSError):
                # of its own: one exception may surface in several readers
                raise OSError(error.errno or errno.EIO, error.strerror or "no answer", shown(url)) from None
            raise


ahead = ReadAhead()
"""The process's."""


@functools.lru_cache(maxsize=len(SCHEMES))
def _system(scheme: str) -> Any:
    """fsspec's client of a scheme."""
    import fsspec

    # where a run logs in detail, these would write down addresses with their signatures
    for name in ("fsspec", "s3fs", "botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if scheme != "s3":
            return fsspec.filesystem(scheme, get_client=_client, skip_instance_cache=True)
        limits = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "retries": {"max_attempts": 1}}
        system = fsspec.filesystem("s3", config_kwargs=limits, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs {error.name or error}: pip install 'sail-train[{EXTRAS[scheme]}]'"
        ) from error
    system.retries = 1  # ours are those of ShardFile
    return system


def _call(system: Any, method: Any, *arguments: Any, **more: Any) -> Any:
    from fsspec.asyn import sync

    return sync(system.loop, method, *arguments, timeout=REQUEST_S, **more)


def _address(url: str) -> str:
    return url.removeprefix("s3://") if url.startswith("s3://") else url


async def _client(**options: Any) -> Any:
    """aiohttp's client, with our time limits, and the hooks that watch redirects and ranges."""
    import aiohttp

    async def redirected(_session: Any, _context: Any, asked: Any) -> None:
        scheme, target = asked.url.scheme, urljoin(str(asked.url), asked.response.headers.get("Location", ""))
        if urlsplit(target).scheme not in (scheme, "https") or "@" in urlsplit(target).netloc:
            asked.response.close()
            raise PermissionError(errno.EPERM, f"the server sends us to {shown(target)!r}, another scheme", "")
        if await _leads_inside(asked.url.host or "", urlsplit(target).hostname or ""):
            asked.response.close()
            raise PermissionError(errno.EPERM, f"the server sends us to {shown(target)!r}, a private address", "")

    async def answered(_session: Any, _context: Any, asked: Any) -> None:
        if "Range" in asked.headers and asked.response.status == 200:
            asked.response.close()  # before its body, which would be the whole shard
            raise PermissionError(errno.EPERM, "the server answers a range with the whole file; copy the shards", "")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(redirected)
    trace.on_request_end.append(answered)
    timeout = aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    return aiohttp.ClientSession(timeout=timeout, trace_configs=[trace], **options)


async def _leads_inside(host: str, target: str) -> bool:
    """Whether a redirect leads from outside to a machine that only we can reach: our network's, or the cloud's
    metadata service. The client looks the name up again when it connects: a name server that answers differently
    then is not caught."""
    if host == target:
        return False
    asked, sent = await _addresses(host), await _addresses(target)
    # a link-local address serves whoever asks from the same machine, so a private host may not send us there either
    return any(
        not address.is_global and not all(_is_inside(one, link=address.is_link_local) for one in asked)
        for address in sent
    )


def _is_inside(address: _Address, *, link: bool) -> bool:
    return address.is_link_local if link else not address.is_global


async def _addresses(host: str) -> list[_Address]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None)
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    mapped = (address.ipv4_mapped if address.version == 6 else None for address in addresses)
    return [inner or address for inner, address in zip(mapped, addresses, strict=True)]


def _os_error(error: BaseException, url: str) -> Exception:
    """What went wrong as an OSError, whose number says whether to ask again, and without addresses in its text."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    answer = vars(cause).get("response")  # botocore's
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    status = vars(cause).get("status") or metadata.get("HTTPStatusCode")
    if isinstance(status, int):
        number = _ANSWERS.get(status, errno.EIO)
        return OSError(number, f"the server answers {status}", shown(url))
    if isinstance(cause, TimeoutError):
        return OSError(errno.ETIMEDOUT, "no answer in time", shown(url))
    if isinstance(cause, FileNotFoundError):
        return OSError(errno.ENOENT, "there is no such object", shown(url))
    if isinstance(cause, PermissionError):
        return OSError(errno.EACCES, cause.strerror or "access is denied", shown(url))
    if type(cause).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return OSError(errno.EACCES, "no credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID and ..SECRET..", shown(url))
    return OSError(errno.EIO, f"the request failed ({type(cause).__name__})", shown(url))
