"""Wire formats, one file each: requests as bytes, bytes as events. Knows no sockets, no clocks."""

from fmgauge.wire.openai_chat import ChatDecoder, Cut, chat_request
from fmgauge.wire.sse import SseDecoder, SseEvent

__all__ = ["ChatDecoder", "Cut", "SseDecoder", "SseEvent", "chat_request"]
