"""What this project uses of its libraries beyond what they document, name by name.

A new version of either may rename it. Then this says so before anything subtler does.
"""

import pytest
from aiohttp import web
from jh2.connection import ConnectionInputs, ConnectionState, H2Connection
from jh2.hyperframe.frame import GoAwayFrame
from jh2.settings import SettingCodes, Settings
from jh2.stream import StreamClosedBy

from proxy.web.http2.library import Library
from proxy.web.http2.limits import Http2Limits


@pytest.mark.parametrize(
    "name",
    [
        *("_waiter", "_paused", "_next_keepalive_close_time", "_keepalive_timeout"),
        *("_force_close", "_close", "_loop", "transport", "_process_keepalive"),
    ],
)
def test_aiohttp_has_what_the_http1_connection_relies_on(name: str) -> None:
    assert hasattr(web.RequestHandler, name), (
        f"aiohttp's RequestHandler has no {name} any more: see proxy/web/http1.py"
    )


@pytest.mark.parametrize(
    "path",
    [
        *("_closed_streams", "highest_inbound_stream_id", "incoming_buffer._headers_buffer"),
        *("state_machine.state", "state_machine.process_input", "outbound_flow_control_window"),
        *("encoder.encode", "encoder.header_table_size", "decoder", "local_settings"),
        *("remote_settings.initial_window_size", "max_outbound_frame_size"),
        *("_receive_goaway_frame", "inbound_flow_control_window", "data_to_send"),
    ],
)
def test_jh2_has_what_the_http2_library_relies_on(path: str) -> None:
    found: object = H2Connection()
    for name in path.split("."):
        assert hasattr(found, name), (
            f"jh2's H2Connection has no {path} any more: see proxy/web/http2/library.py"
        )
        found = getattr(found, name)


def test_jh2_means_by_its_names_what_the_http2_library_means() -> None:
    telling = "see proxy/web/http2/library.py: jh2 has changed its inside"
    assert {"SEND_END_STREAM", "SEND_RST_STREAM"} <= set(StreamClosedBy.__members__), telling
    assert "SERVER_OPEN" in ConnectionState.__members__, telling
    assert "RECV_HEADERS" in ConnectionInputs.__members__, telling
    library = Library(Http2Limits())
    dispatched = library._frame_dispatch_table[GoAwayFrame]
    assert dispatched.__func__ is Library._receive_goaway_frame, telling
    settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
    assert settings.initial_window_size == 65_535, telling
    assert library.max_outbound_frame_size == 16_384, telling


def test_a_client_that_says_nothing_has_the_windows_of_the_standard() -> None:
    """RFC 9113 section 6.5.2: what a client has not set."""
    library = Library(Http2Limits())
    assert library.remote_settings.initial_window_size == 65_535
    assert library.remote_settings.header_table_size == 4_096
    assert library.encoder.header_table_size == 4_096
    assert library.room() == 65_535


def test_what_is_kept_of_streams_that_are_over_is_bounded() -> None:
    library = Library(Http2Limits())
    library.initiate_connection()
    for stream in range(1, 10_001, 2):
        library.skip(stream, [(b":status", b"304", False)], 0)
    assert len(library._closed_streams) == 1024, "see proxy/web/http2/library.py"
    assert max(library._closed_streams) == library.highest_inbound_stream_id == 9_999
