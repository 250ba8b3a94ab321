"""Endpoints that cannot be asked: told with the host, the reason and a remedy, and not measured.

What a config's text alone shows to be wrong is tested with the config: addresses without a scheme
or with credentials, rates that are none. A key that is not set is in the tests of the load and of
the command line.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from fmgauge.endpoints import bring_up
from fmgauge.load import run_stages
from fmgauge.records import Endpoint, read_endpoints, write_payloads
from fmgauge.runs import Run, open_run
from scripted_server import Peer, Request, Script, ScriptedServer, answer, response
from stage_runs import payloads

CONFIG = """
run: {{name: test, results_dir: {results}}}
workloads:
  - {{name: short, source: {{kind: jsonl, paths: [none.jsonl]}}}}
experiments:
  - name: remote
    model: {{name: tiny}}
    endpoint: {{kind: openai, base_url: "{base_url}"{more}}}
    workloads: [short]
    load:
      - {{kind: closed_loop, concurrency: [1], warmup_s: 0.05, duration_s: 0.1}}
"""


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """Opens a run, its prompts prepared, of one endpoint at `base_url`."""

    def open_(base_url: str, more: str = "") -> Run:
        path = tmp_path / "config.yml"
        text = CONFIG.format(base_url=base_url, more=more, results=tmp_path / "results")
        path.write_text(text)
        run = open_run(path, "run")
        write_payloads(run.payloads_path("short"), payloads())
        return run

    return open_


@pytest.fixture
def authority() -> trustme.CA:
    """An authority that no system knows."""
    return trustme.CA()


def tls_of(authority: trustme.CA, host: str) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for `host`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    return context


def measured(run: Run) -> tuple[Endpoint, list[str]]:
    """Bring up and load a run; its endpoint, and what the load told."""
    lines: list[str] = []
    (endpoint,) = bring_up(run)
    done = run_stages(run, read_endpoints(run.endpoints_path), announce=lines.append)
    assert bool(done) == (endpoint.state == "ready")
    return endpoint, lines


def test_host_that_does_not_resolve_is_named_and_nothing_is_run(
    new_run: Callable[..., Run],
) -> None:
    """The host, the resolver's reason and the key to mend are told; no stage is written."""
    run = new_run("https://no-such-host.invalid/v1")

    endpoint, lines = measured(run)

    assert endpoint.state == "failed"
    assert re.fullmatch(
        r"the first answer was no answer: connection_error: cannot connect: "
        r"no-such-host\.invalid does not resolve: .+\. "
        r"Check the host's name in base_url, https://no-such-host\.invalid/v1",
        endpoint.error or "",
    )
    assert [endpoint.error in line for line in lines] == [True]
    assert not run.requests_folder.exists()


def test_certificate_that_does_not_verify_is_told_and_nothing_is_sent(
    new_run: Callable[..., Run], authority: trustme.CA
) -> None:
    """The server, OpenSSL's reason and the variable for private authorities; not one request."""
    with ScriptedServer(answer, tls=tls_of(authority, "127.0.0.1")) as server:
        run = new_run(server.base_url)
        endpoint, lines = measured(run)

    assert endpoint.error == (
        f"the first answer was no answer: connection_error: cannot connect: "
        f"127.0.0.1:{server.port}: certificate verify failed: unable to get local issuer "
        f"certificate. If the authority behind {server.base_url} is a private one, name the file "
        f"of its certificates in SSL_CERT_FILE"
    )
    assert len(lines) == 1
    assert server.requests == []
    assert not run.requests_folder.exists()


def test_certificate_for_another_host_is_told(
    new_run: Callable[..., Run],
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under an authority that is trusted, a certificate for another host is still none."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    with ScriptedServer(answer, tls=tls_of(authority, "elsewhere.example")) as server:
        endpoint, _ = measured(new_run(server.base_url))

    assert endpoint.state == "failed"
    assert "certificate verify failed: IP address mismatch" in (endpoint.error or "")
    assert server.requests == []


def test_remedy_that_was_told_helps(
    new_run: Callable[..., Run],
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With SSL_CERT_FILE as it was advised the endpoint is ready, and its stage is run."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    with ScriptedServer(answer, tls=tls_of(authority, "127.0.0.1")) as server:
        endpoint, lines = measured(new_run(server.base_url))

    assert (endpoint.state, endpoint.error) == ("ready", None)
    assert lines[0].endswith(" 0 failed")


def test_port_where_nobody_listens_is_named(new_run: Callable[..., Run]) -> None:
    """A refused connection tells where it went, and to look whether a server is there."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    address = f"http://127.0.0.1:{port}/v1"

    endpoint, _ = measured(new_run(address))

    error = endpoint.error or ""
    assert f"cannot connect: 127.0.0.1:{port}: Connection refused. " in error
    assert error.endswith(f"Check that a server answers at {address}")


def refusal(status: str) -> Script:
    """A script that refuses everybody."""

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(response(status, b"no"))

    return script


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ("", "Name the variable that holds the key in api_key_env"),
        (", api_key_env: TEST_UNREACHABLE_KEY", "Check the key in TEST_UNREACHABLE_KEY"),
    ],
)
def test_key_that_is_refused_is_told_by_its_variable(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, more: str, remedy: str
) -> None:
    """A server that wants another key: its answer, and which variable to look at, not the key."""
    monkeypatch.setenv("TEST_UNREACHABLE_KEY", "key-12345")

    with ScriptedServer(refusal("401 Unauthorized")) as server:
        endpoint, _ = measured(new_run(server.base_url, more))

    assert (endpoint.error or "").endswith(f"http_error: HTTP 401: no. {remedy}")
    assert "key-12345" not in (endpoint.error or "")
