"""The sans-IO library (`jh2`) as a server uses it here, and all that is known of its inside.

It keeps the protocol: framing, HPACK, the states and windows of RFC 9113. Two things it does not
offer are added: a client's GOAWAY is no end to what the client still waits for, and a request can
be answered past it (`look`, `skip`), which then only has to know that the stream is over. Nothing
else in this package touches what the library does not document.
"""

from typing import Final

from jh2.config import H2Configuration
from jh2.connection import ConnectionInputs, ConnectionState, Decoder, H2Connection
from jh2.events import ConnectionTerminated, Event
from jh2.hyperframe.frame import Frame, GoAwayFrame
from jh2.settings import SettingCodes, Settings
from jh2.stream import StreamClosedBy

from proxy.web.http2.blocks import CarefulDecoder
from proxy.web.http2.heads import RawField
from proxy.web.http2.limits import Http2Limits

# What a client allows for compressing heads is a bound, and ours to stay below.
_ENCODER_TABLE_BYTES: Final = 4096
# What holds for a client until it says something else (RFC 9113 section 6.5.2); the library would
# take it for a browser, with a window of six megabytes.
_UNTIL_THE_CLIENT_SPEAKS: Final = {
    SettingCodes.HEADER_TABLE_SIZE: _ENCODER_TABLE_BYTES,
    SettingCodes.INITIAL_WINDOW_SIZE: 65_535,
}
_CONFIG: Final = H2Configuration(
    client_side=False,
    # Every byte has a meaning in it; what may not be in a field is the library's to refuse.
    header_encoding="latin-1",
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class Library(H2Connection):  # type: ignore[misc]
    """One connection's protocol. For one event loop."""

    # How many streams are remembered by how they ended. Hot answers end tens of thousands a second,
    # and what the library would keep of them is eight megabytes a connection.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, limits: Http2Limits) -> None:
        super().__init__(config=_CONFIG)
        settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                SettingCodes.ENABLE_PUSH: 0,
            },
        )
        self.local_settings = settings
        self.remote_settings = Settings(client=True, initial_values=_UNTIL_THE_CLIENT_SPEAKS)
        self._careful = CarefulDecoder(Decoder())
        self._careful.max_header_list_size = limits.header_list_bytes
        self._careful.max_allowed_table_size = settings.header_table_size
        self.decoder = self._careful
        self._stream_window_bytes = int(self.remote_settings.initial_window_size)

    def learn_settings(self) -> None:
        """Take over what the peer's new settings say."""
        self.encoder.header_table_size = min(self.encoder.header_table_size, _ENCODER_TABLE_BYTES)
        self._stream_window_bytes = int(self.remote_settings.initial_window_size)

    # Answering past the library

    def look(self, stream_id: int, block: bytes) -> list[RawField] | None:
        """Decode the head of a new stream; None if only the library can say what it is.

        The block counts as decoded: when the library is given it next, it gets the same fields, or
        the same failure.
        """
        if stream_id <= self.highest_inbound_stream_id or self.incoming_buffer._headers_buffer:  # noqa: SLF001
            return None
        return self._careful.look(block)

    def room(self) -> int:
        """Return how many bytes of body a new stream could be sent at once."""
        return min(int(self.outbound_flow_control_window), self._stream_window_bytes)

    def skip(self, stream_id: int, head: list[RawField], body_bytes: int) -> bytes:
        """Count a stream as opened, answered and over; returns its encoded head.

        What is encoded has to be sent before anything that is encoded later.
        """
        self._careful.forget()
        if self.state_machine.state is not ConnectionState.SERVER_OPEN:
            self.state_machine.process_input(ConnectionInputs.RECV_HEADERS)
        self.highest_inbound_stream_id = stream_id
        self._closed_streams[stream_id] = StreamClosedBy.SEND_END_STREAM
        self.outbound_flow_control_window -= body_bytes
        block: bytes = self.encoder.encode(head)
        return block

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


def goaway(last_stream_id: int, code: int) -> bytes:
    """Write a GOAWAY past the library, which would close its connection with it.

    Streams above `last_stream_id` are refused, the others go on (RFC 9113 section 6.8).
    """
    data: bytes = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=code).serialize()
    return data
