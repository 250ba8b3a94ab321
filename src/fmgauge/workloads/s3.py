"""Data files in S3, with the user's usual credentials. Knows addresses; not what files hold."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Iterator
from typing import Any

from fmgauge.config import LoadedConfig
from fmgauge.config.yaml_text import Location

_SCHEME = "s3://"


def is_s3(path: str) -> bool:
    """Whether `path` is an s3://bucket/key address."""
    return path.startswith(_SCHEME)


def s3_objects(
    loaded: LoadedConfig, location: Location, address: str
) -> Iterator[tuple[str, bytes]]:
    """Addresses and contents of the objects that `address` names; its key may be a glob.

    Raises ConfigError at `location` where there is none, or where S3 does not give it.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    open_session: Callable[..., Any] = boto3.session.Session  # boto3 has no types
    bucket, _, pattern = address.removeprefix(_SCHEME).partition("/")
    try:
        client = open_session().client("s3")
        keys = _keys(client, bucket, pattern)
        if not keys:
            remedy = "Write s3://bucket/key; * in a key stands for any text"
            raise loaded.error(location, f"{address} names no object", remedy)
        for key in keys:
            content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            yield f"{_SCHEME}{bucket}/{key}", content
    except (BotoCoreError, ClientError) as error:
        remedy = "Check the address, and that your AWS credentials may read it"
        raise loaded.error(location, f"{address} cannot be read: {error}", remedy) from error


def _keys(client: Any, bucket: str, pattern: str) -> list[str]:
    """The keys in `bucket` that match `pattern`; a plain key is taken as it is."""
    if not pattern or not glob.has_magic(pattern):
        return [pattern] if pattern else []
    prefix = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return sorted(key for key in keys if fnmatch.fnmatchcase(key, pattern))
