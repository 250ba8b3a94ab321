"""Wire formats, one file each: requests as bytes, bytes as tokens. Knows no sockets, no clocks."""

from fmgauge.wire.decoding import Cut, Decoder
from fmgauge.wire.formats import format_of, new_decoder, request_template, usage_is_optional
from fmgauge.wire.json_lines import JsonLinesDecoder, JsonText
from fmgauge.wire.requests import RequestTemplate
from fmgauge.wire.sse import SseDecoder, SseEvent

__all__ = [
    "Cut",
    "Decoder",
    "JsonLinesDecoder",
    "JsonText",
    "RequestTemplate",
    "SseDecoder",
    "SseEvent",
    "format_of",
    "new_decoder",
    "request_template",
    "usage_is_optional",
]
