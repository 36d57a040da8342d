"""Requests made from the server's own description, and raw bytes: never a fault of the server."""

import json
import socket

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# A request that cannot be answered now may be repeated; nothing else is the server's fault.
NOT_NOW = 503
# Shrinking asks the server hundreds of times more and only shortens the report.
QUICK = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[*HealthCheck],
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture
def url(serve):
    """A server that still answers when the test has ended."""
    live = serve(timeout=5.0)
    yield live.url
    assert httpx.get(f"{live.url}/readyz").status_code == 200
    after = httpx.post(f"{live.url}/v1/predict", json={"model": "mood", "rows": ["dull"]})
    assert after.status_code == 200


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_every_described_request_gets_an_answer(url: str, mode: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    chosen = schemathesis.GenerationMode[mode]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10

    def check(operation) -> None:
        @QUICK
        @given(case=operation.as_strategy(generation_mode=chosen))
        def ask(case) -> None:
            case.headers.pop("Authorization", None)
            reply = case.call(base_url=url, timeout=30)
            assert reply.status_code < 500 or reply.status_code == NOT_NOW, case.as_curl_command()
            if reply.status_code >= 400 and reply.content:
                assert {*json.loads(reply.content)["error"]} == {"message", "type", "param", "code"}

        ask()

    for operation in operations:
        if mode == "POSITIVE" or operation.method == "post":
            check(operation)


LINES = st.binary(max_size=40).map(lambda line: line.replace(b"\n", b""))
HEADERS = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 5, 6",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Type: application/json; charset=\xff",
        b"Authorization: Bearer \xff\x00",
        b"Authorization: Basic ====",
        b"Expect: 100-continue",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Host: evil.example",
        b"Host: [::1",
        b"X: " + b"a" * 70_000,
    ]
)
TARGETS = st.sampled_from(
    [
        b"/v1/predict",
        b"/classify",
        b"/",
        b"/v1/models/%00",
        b"/v1/models/..%2f..",
        b"*",
        b"//",
        b"?",
    ]
)
BODIES = st.sampled_from(
    [b"", b"{}", b'{"model": "mood", "rows": ["dull"]}', b"5\r\nhello\r\n0\r\n"]
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    method=st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"BREW", b"\xff", b""]),
    target=TARGETS,
    headers=st.lists(st.one_of(HEADERS, LINES), max_size=5),
    body=st.one_of(BODIES, st.binary(max_size=60)),
)
def test_no_bytes_are_a_fault_of_the_server(url: str, method, target, headers, body) -> None:
    head = b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: localhost", *headers])
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.3)  # a body that never ends is waited for
        try:
            connection.sendall(head + b"\r\n\r\n" + body)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        except OSError:  # the server has closed the connection, or waits for more
            return
    status = answer.split(b" ", 2)[1:2]
    assert not status or status[0] < b"500" or status[0] == b"503", answer
