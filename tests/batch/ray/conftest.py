"""Fixtures of tests of jobs on many machines."""

from __future__ import annotations

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture
def bucket(monkeypatch):
    """The address of a bucket on this machine."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="pictures")
    yield f"s3://nobody:nothing@pictures/%s?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    server.stop()
