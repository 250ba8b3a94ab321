"""Request records to plain columns, one value a request, read some records at a time.

Knows which instants a latency lies between. What is kept of a request does not grow with its
tokens: of those, first, last and number are kept, and whoever asks sees each piece once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fmgauge.records import Batches, Status

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

STATUSES = get_args(Status)
TOKEN_COLUMNS = ("phase", "status", "token_at_s", "chunk_tokens")
_COLUMNS = (
    *TOKEN_COLUMNS,
    *("intended_at_s", "connected_at_s", "sent_at_s", "finished_at_s"),
    *("prompt_tokens", "max_output_tokens", "output_tokens", "finish_reason", "token_source"),
    *("reasoning_tokens", "first_content_at_s", "http_status", "resent", "held_back_at_s"),
)


@dataclass(frozen=True)
class TokenChunks:
    """All token-bearing chunks of some requests, flat, in each request's order of arrival."""

    row: NDArray[np.intp]  # which request, by its row
    at_s: Floats
    tokens: Floats | None  # NaN where a chunk's own tokens were not counted; None where none were
    n_chunks: NDArray[np.int64]  # of each request

    @classmethod
    def of(cls, records: pa.RecordBatch) -> Self:
        """The chunks of records; a request's chunk counts are used only where all are there."""
        import pyarrow.compute as pc

        instants, counted = records.column("token_at_s"), records.column("chunk_tokens")
        at_s = _floats(pc.list_flatten(instants))
        lengths = _lengths(instants)
        n_chunks = np.maximum(lengths, 0)
        row = np.repeat(np.arange(lengths.size), n_chunks)
        if counted.null_count == len(counted):
            return cls(row, at_s, None, n_chunks)
        complete = lengths == _lengths(counted)
        tokens = np.full(row.size, math.nan)
        counts = _floats(pc.list_flatten(counted))
        tokens[complete[row]] = counts[complete[pc.list_parent_indices(counted).to_numpy()]]
        return cls(row, at_s, tokens, n_chunks)

    @property
    def streamed(self) -> Flags:
        """Whose chunks came at two instants at least; in one write, all come at the same."""
        first_s, last_s = _first_and_last(self)
        return last_s > first_s


def _lengths(lists: pa.Array[Any]) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    lengths: NDArray[np.int64] = pc.fill_null(pc.list_value_length(lists), -1).to_numpy()
    return lengths.astype(np.int64)


def _floats(column: pa.Array[Any]) -> Floats:
    """Numbers as doubles, NaN where there is none."""
    import pyarrow as pa

    numbers: Floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


@dataclass(frozen=True)
class Requests:
    """The columns of a stage's requests. Seconds; NaN where something did not happen.

    A request ends with its last token; one without any token's instant, when it was finished. NaN
    where a latency is undefined: TTFT without a token, TPOT of one token or without streaming.
    """

    measured: Flags
    status: NDArray[np.int8]  # its place in STATUSES
    streamed: Flags
    hit_limit: Flags  # ended because it reached the most tokens that it was asked for
    counted_by_server: Flags
    doubtful: Flags  # the server told counts that cannot be right
    resent: Flags
    intended_s: Floats
    connected_s: Floats
    sent_s: Floats
    held_back_s: Floats  # from when on it waited because the limit in flight was reached
    first_token_s: Floats
    end_s: Floats
    finished_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    shown_tokens: Floats  # the output tokens that its chunks bore: all but hidden reasoning
    http_status: Floats

    @classmethod
    def of(cls, records: pa.RecordBatch, chunks: TokenChunks) -> Self:
        """The columns of some records, in their order."""
        first_s, last_s = _first_and_last(chunks)
        finished_s = _floats(records.column("finished_at_s"))
        by_server = _is(records, "token_source", "server")
        return cls(
            measured=_is(records, "phase", "measured"),
            status=_places(records.column("status"), STATUSES),
            streamed=chunks.streamed,
            hit_limit=_is(records, "finish_reason", "length"),
            counted_by_server=by_server,
            doubtful=by_server & _impossible(records, chunks),
            resent=_flags(records.column("resent")),
            intended_s=_floats(records.column("intended_at_s")),
            connected_s=_floats(records.column("connected_at_s")),
            sent_s=_floats(records.column("sent_at_s")),
            held_back_s=_floats(records.column("held_back_at_s")),
            first_token_s=first_s,
            end_s=np.where(np.isnan(last_s), finished_s, last_s),
            finished_s=finished_s,
            prompt_tokens=_floats(records.column("prompt_tokens")),
            output_tokens=_floats(records.column("output_tokens")),
            shown_tokens=_shown_tokens(records, chunks),
            http_status=_floats(records.column("http_status")),
        )

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """Several pieces as one, in their order."""
        return cls(
            **{f.name: np.concatenate([getattr(p, f.name) for p in pieces]) for f in fields(cls)}
        )

    def __len__(self) -> int:
        return len(self.status)

    def __getitem__(self, chosen: NDArray[np.generic]) -> Self:
        """Some of the requests, by flags or in the order of their places."""
        return type(self)(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    @property
    def ok(self) -> Flags:
        """Which requests succeeded."""
        flags: Flags = self.status == STATUSES.index("ok")
        return flags

    @property
    def start_s(self) -> Floats:
        """When each began to occupy a place: when sent, or meant to be where it never was."""
        return np.where(np.isnan(self.sent_s), self.intended_s, self.sent_s)

    @property
    def ttft_s(self) -> Floats:
        """Time to first token, from sending."""
        return self.first_token_s - self.sent_s

    @property
    def ttft_s_from_intended(self) -> Floats:
        """Time to first token, from when the schedule wanted to send."""
        return self.first_token_s - self.intended_s

    @property
    def e2e_latency_s(self) -> Floats:
        """End-to-end latency, from sending."""
        return self.end_s - self.sent_s

    @property
    def e2e_latency_s_from_intended(self) -> Floats:
        """End-to-end latency, from when the schedule wanted to send."""
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first."""
        several = self.streamed & (self.shown_tokens > 1)
        return (self.e2e_latency_s - self.ttft_s) / np.where(
            several, self.shown_tokens - 1, math.nan
        )

    @property
    def unstreamed(self) -> Flags:
        """Whose tokens, two or more, all came at one instant, so that nothing lies between them."""
        return ~self.streamed & (self.shown_tokens > 1)

    @property
    def send_delay_s(self) -> Floats:
        """By how much each was sent later than it was meant to be."""
        return self.sent_s - self.intended_s

    @property
    def own_delay_s(self) -> Floats:
        """How much of `send_delay_s` is not the limit in flight, which was asked for."""
        return np.fmin(self.sent_s, self.held_back_s) - self.intended_s


def _is(records: pa.RecordBatch, column: str, text: str) -> Flags:
    import pyarrow.compute as pc

    return _flags(pc.equal(records.column(column), text))


def _flags(column: pa.Array[Any]) -> Flags:
    """Booleans, False where there is none."""
    import pyarrow.compute as pc

    flags: Flags = pc.fill_null(column, fill_value=False).to_numpy(zero_copy_only=False)
    return flags


def _places(column: pa.Array[Any], texts: Sequence[str]) -> NDArray[np.int8]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(column, value_set=pa.array(texts, pa.string()))
    places: NDArray[np.int64] = found.to_numpy(zero_copy_only=False)
    return places.astype(np.int8)


def _impossible(records: pa.RecordBatch, chunks: TokenChunks) -> Flags:
    """Which counts contradict one another, the chunks, or what was asked for."""
    output_tokens = _floats(records.column("output_tokens"))
    impossible: Flags = (
        (output_tokens < chunks.n_chunks)
        | (output_tokens > _floats(records.column("max_output_tokens")))
        | (output_tokens < _floats(records.column("reasoning_tokens")))
        | (_floats(records.column("prompt_tokens")) == 0)
    )
    return impossible


def _shown_tokens(records: pa.RecordBatch, chunks: TokenChunks) -> Floats:
    """The output tokens without those of reasoning that no chunk bore: made before the first one.

    Where the first chunk is content, no reasoning came before it; that none came after it either
    is known where the other tokens suffice for a token a chunk.
    """
    output_tokens = _floats(records.column("output_tokens"))
    reasoning = np.nan_to_num(_floats(records.column("reasoning_tokens")), nan=0.0)
    first_s, _ = _first_and_last(chunks)
    hidden = (reasoning > 0) & (_floats(records.column("first_content_at_s")) == first_s)
    others = np.maximum(output_tokens - reasoning, np.minimum(chunks.n_chunks, output_tokens))
    return np.where(hidden, others, output_tokens)


def _first_and_last(chunks: TokenChunks) -> tuple[Floats, Floats]:
    """Each request's first and last token instant, NaN without any."""
    counts = chunks.n_chunks
    ends, some = np.cumsum(counts), counts > 0
    first, last = np.full(counts.size, math.nan), np.full(counts.size, math.nan)
    first[some] = chunks.at_s[(ends - counts)[some]]
    last[some] = chunks.at_s[ends[some] - 1]
    return first, last


# --- reading -------------------------------------------------------------------------------------

See = Callable[[Requests, TokenChunks], object]


def read_requests(batches: Batches, *see: See) -> Requests:
    """All requests of a stage, as they were written; `see` is shown each piece with its chunks."""
    pieces = [_nothing()]
    for records in batches(_COLUMNS):
        chunks = TokenChunks.of(records)
        piece = Requests.of(records, chunks)
        for one in see:
            one(piece, chunks)
        pieces.append(piece)
    return Requests.joined(pieces)


def _nothing() -> Requests:
    import pyarrow as pa

    from fmgauge.records import record_schema

    nothing = pa.RecordBatch.from_pylist([], schema=record_schema())
    return Requests.of(nothing, TokenChunks.of(nothing))


def sending_order(requests: Requests) -> NDArray[np.intp]:
    """The requests' places in the order in which they were meant to be sent."""
    return np.argsort(requests.intended_s, kind="stable")


def served_chunks(batches: Batches) -> Iterator[tuple[Flags, TokenChunks]]:
    """Once more the chunks of every piece, with whose gaps count: streamed, measured and ok."""
    for records in batches(TOKEN_COLUMNS):
        served = _is(records, "phase", "measured") & _is(records, "status", "ok")
        chunks = TokenChunks.of(records)
        yield served & chunks.streamed, chunks


def request_table(batches: Batches, keep: Sequence[str] = ("phase", "status")) -> pd.DataFrame:
    """One row a request in sending order: its latencies in seconds, and columns of its record.

    Latencies: ttft_s, tpot_s, e2e_latency_s, ttft_s_from_intended, e2e_latency_s_from_intended,
    send_delay_s. `keep` names what of the records stands beside them.
    """
    import pandas as pd
    import pyarrow as pa

    from fmgauge.records import record_schema

    requests = read_requests(batches)
    schema = pa.schema([record_schema().field(name) for name in keep])
    kept = pa.Table.from_batches(batches(list(keep)), schema=schema).to_pandas()
    latencies = {
        name: getattr(requests, name)
        for name in (
            *("ttft_s", "tpot_s", "e2e_latency_s", "send_delay_s"),
            *("ttft_s_from_intended", "e2e_latency_s_from_intended"),
        )
    }
    table = pd.concat([kept, pd.DataFrame(latencies)], axis="columns")
    ordered: pd.DataFrame = table.iloc[sending_order(requests)].reset_index(drop=True)
    return ordered
