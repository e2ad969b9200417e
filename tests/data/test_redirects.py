"""Where a server may send our client: never to another scheme, nor from outside to an address of ours."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from sail_train.data import remote

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
yarl = pytest.importorskip("yarl")


@pytest.mark.parametrize(
    ("begun", "target", "fine"),
    [("https", "http://1.1.1.1/a.tar", False), ("http", "https://1.1.1.1/a.tar", True), ("https", "/b.tar", True)],
)
def test_no_redirect_leaves_https(begun: str, target: str, fine: bool) -> None:
    if fine:
        follow(f"{begun}://8.8.8.8/a.tar", target)
    else:
        with pytest.raises(PermissionError, match="another scheme"):
            follow(f"{begun}://8.8.8.8/a.tar", target)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.9", "169.254.169.254", "[::1]", "[fd00:ec2::254]", "[fe80::1]",
     "[::ffff:10.0.0.1]", "100.64.0.1", "0.0.0.0"],
)  # fmt: skip
def test_no_redirect_leads_from_outside_to_an_address_of_ours(host: str) -> None:
    with pytest.raises(PermissionError, match="a private address"):
        follow("http://8.8.8.8/a.tar", f"http://{host}:80/a.tar")


def test_private_hosts_may_redirect_to_each_other_but_not_to_the_metadata_service() -> None:
    follow("http://10.0.0.1/a.tar", "http://192.168.0.9/a.tar")
    with pytest.raises(PermissionError, match="a private address"):
        follow("http://10.0.0.1/a.tar", "http://169.254.169.254/latest")


def follow(begun: str, target: str) -> None:
    """What the client does about a redirect, without a request."""

    async def redirected() -> None:
        async with await remote._client() as client:
            (hook,) = client.trace_configs[0].on_request_redirect
            response = SimpleNamespace(headers={"Location": target}, close=lambda: None)
            await hook(client, None, SimpleNamespace(url=yarl.URL(begun), response=response))

    asyncio.run(redirected())
