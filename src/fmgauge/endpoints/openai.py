"""Servers that exist and speak one of OpenAI's APIs: asked, never created, never deleted.

Knows what a user can do about one that does not answer; not how it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from fmgauge.config.model import Experiment, OpenaiEndpoint
from fmgauge.endpoints.protocol import Kind, endpoint_of
from fmgauge.records import Endpoint, RequestRecord

_NO_KEY = ". Name the variable that holds the key in api_key_env"


class OpenaiKind(Kind[OpenaiEndpoint]):
    """A server that somebody else runs."""

    name = "openai"
    answered_by = "behind an OpenAI-compatible server that was already there"

    def endpoint(self, experiment: Experiment, wanted: OpenaiEndpoint) -> Endpoint:
        """It answers at the config's address, by the config's API, with the config's key."""
        return endpoint_of(
            experiment,
            owned=False,
            base_url=wanted.base_url,
            api=wanted.api,
            api_key_env=wanted.api_key_env,
            extra_body=dict(wanted.extra_body),
        )

    def settings(self, wanted: OpenaiEndpoint) -> Iterator[str]:
        """Its address and its API."""
        yield wanted.base_url
        yield f"{wanted.api} API"

    def remedy(self, endpoint: Endpoint, answer: RequestRecord) -> str:
        """Which key of the config to look at."""
        error = answer.error or ""
        if "does not resolve" in error:
            return f". Check the host's name in base_url, {endpoint.base_url}"
        if "certificate verify failed" in error:
            return (
                f". If the authority behind {endpoint.base_url} is a private one, name the file of "
                "its certificates in SSL_CERT_FILE"
            )
        if answer.http_status in (401, 403):
            return f". Check the key in {endpoint.api_key_env}" if endpoint.api_key_env else _NO_KEY
        if answer.http_status == 404 and not (endpoint.base_url or "").rstrip("/").endswith("/v1"):
            return f". Does base_url lack a /v1 at its end? It is {endpoint.base_url}"
        if answer.http_status is None and answer.status in ("connection_error", "timeout"):
            return f". Check that a server answers at {endpoint.base_url}"
        return ""
