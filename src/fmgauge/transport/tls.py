"""Whom to trust, how to resume a session, and what went wrong in a handshake. Knows no sockets."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from fmgauge.errors import EndpointError

# The first is read by OpenSSL as well, which passes over a file that is not there without a word.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


class ResumingContext(ssl.SSLContext):
    """A client's TLS settings for one host, whose new connections resume `resumed`."""

    resumed: ssl.SSLSession | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Begin a connection as the event loops do, which know nothing of sessions."""
        return super().wrap_bio(
            incoming, outgoing, server_side, server_hostname, session or self.resumed
        )


def client_context(environ: Mapping[str, str]) -> ResumingContext:
    """TLS that verifies certificates, by the system's authorities and those the environment names.

    EndpointError where a variable names a file that holds no certificates or cannot be read.
    """
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.load_default_certs()  # heeds SSL_CERT_FILE and SSL_CERT_DIR
    context.set_alpn_protocols(["http/1.1"])
    for variable in _CA_VARIABLES:
        if environ.get(variable):
            _trust(context, variable, environ[variable])
    return context


def handshake_problem(error: OSError) -> str:
    """What went wrong in a handshake, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS handshake failed: {error.reason.replace('_', ' ').lower()}"
    reason = os.strerror(error.errno) if error.errno else "the connection was closed"
    return f"TLS handshake failed: {reason}"


def _trust(context: ssl.SSLContext, variable: str, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise EndpointError(f"{variable} names {path}, which holds no certificates.") from None
    except OSError as error:
        raise EndpointError(
            f"{variable} names {path}, which cannot be read: {error.strerror}."
        ) from error
