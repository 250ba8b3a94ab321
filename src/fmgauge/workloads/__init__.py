"""From sources to payloads: rows, templates, token windows, salts, order. Starts no endpoint."""

from fmgauge.workloads.payloads import PreparedWorkload, check_workloads, prepare_payloads
from fmgauge.workloads.salts import marked, salt_from, salts_after
from fmgauge.workloads.tokenizer import (
    PromptTokenizer,
    cache_dir,
    docs_text,
    docs_tokenizer_path,
    tokenizer_for,
)

__all__ = [
    "PreparedWorkload",
    "PromptTokenizer",
    "cache_dir",
    "check_workloads",
    "docs_text",
    "docs_tokenizer_path",
    "marked",
    "prepare_payloads",
    "salt_from",
    "salts_after",
    "tokenizer_for",
]
