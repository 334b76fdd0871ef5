"""What both roles of a login share: wishes, outcome, status codes, and the bookkeeping of key negotiation.

The two machines, `login_target.TargetLogin` and `login_initiator.InitiatorLogin`, take a PDU and answer the next one;
they do no I/O and know no clock.

    (security stage, CSG 0) --T--> (operational stage, CSG 1) --T--> full feature phase (3)
             any number of exchanges in a stage; C bit: one side's text goes on in its next PDU
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

from detour.errors import LoginError, ProtocolError
from detour.iscsi import keys
from detour.iscsi.keys import KEYS, Key, Value

SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3
TEXT_BYTES_MAX = 65536      # one exchange, over all of its PDUs
ROUNDS_MAX = 32             # exchanges of one login


class LoginStatus(Enum):
    """Status class and detail of a Login Response with a sentence (section 11.13.5)."""

    SUCCESS = (0, 0, "login succeeded")
    MOVED_TEMPORARILY = (1, 1, "the target has moved temporarily")
    MOVED_PERMANENTLY = (1, 2, "the target has moved permanently")
    INITIATOR_ERROR = (2, 0, "the target refused the login as an initiator error")
    AUTHENTICATION_FAILURE = (2, 1, "authentication failed")
    AUTHORIZATION_FAILURE = (2, 2, "the initiator may not use this target")
    NOT_FOUND = (2, 3, "the target does not exist there")
    REMOVED = (2, 4, "the target was removed for good")
    UNSUPPORTED_VERSION = (2, 5, "the iSCSI version is not supported")
    TOO_MANY_CONNECTIONS = (2, 6, "the session takes no more connections")
    MISSING_PARAMETER = (2, 7, "a text key is missing that the login needs")
    CANNOT_INCLUDE = (2, 8, "the target does not spread a session over these portals")
    SESSION_TYPE = (2, 9, "the session type is not supported")
    NO_SESSION = (2, 10, "the session does not exist")
    INVALID_REQUEST = (2, 11, "an invalid request came during login")
    TARGET_ERROR = (3, 0, "the target failed")
    SERVICE_UNAVAILABLE = (3, 1, "the target does not serve at this time")
    OUT_OF_RESOURCES = (3, 2, "the target has no room for another session")

    @property
    def status_class(self) -> int:
        return self.value[0]

    @property
    def status_detail(self) -> int:
        return self.value[1]

    @property
    def sentence(self) -> str:
        return self.value[2]


_STATUS_OF = {status.value[:2]: status for status in LoginStatus}


def status_sentence(status_class: int, status_detail: int) -> str:
    """What a status means, for codes that nobody registered too."""
    status = _STATUS_OF.get((status_class, status_detail))
    code = f"{status_class:02x}{status_detail:02x}"
    return f"{status.sentence} (status {code})" if status else f"the target answered login status {code}"


class Redirected(Exception):
    """The target answered a login with another address (status class 1)."""

    def __init__(self, host: str, port: int, permanent: bool) -> None:
        super().__init__(f"{host}:{port}")
        self.host = host
        self.port = port
        self.permanent = permanent


@dataclass(frozen=True)
class Wishes:
    """What a side would like; bytes and seconds. Digests are lists, offered in this order; a responder takes the first
    of the peer's order.

    recv_data_bytes_max is declared (MaxRecvDataSegmentLength); the rest goes through the result functions.
    """

    header_digest: tuple[str, ...] = ("None",)
    data_digest: tuple[str, ...] = ("None",)
    recv_data_bytes_max: int = 262144
    burst_bytes_max: int = 1048576
    first_burst_bytes: int = 262144
    initial_r2t: bool = False
    immediate_data: bool = True
    outstanding_r2t_max: int = 1
    time2wait_s: int = 0
    time2retain_s: int = 20
    queue_depth: int = 128
    alias: str = ""

    def __post_init__(self) -> None:
        if self.first_burst_bytes > self.burst_bytes_max:
            raise ValueError("FirstBurstLength must not exceed MaxBurstLength")
        for name, value in self.offers().items():
            key = KEYS[name]
            if key.high and not isinstance(value, tuple) and not key.low <= value <= key.high:  # type: ignore[operator]
                raise ValueError(f"{name}={value} is outside of {key.low} to {key.high}")

    def offers(self) -> dict[str, Value | tuple[str, ...]]:
        """Key -> value of everything that is negotiated in the operational stage."""
        return {
            "HeaderDigest": self.header_digest, "DataDigest": self.data_digest,
            "MaxRecvDataSegmentLength": self.recv_data_bytes_max, "MaxConnections": 1,
            "InitialR2T": self.initial_r2t, "ImmediateData": self.immediate_data,
            "MaxBurstLength": self.burst_bytes_max, "FirstBurstLength": self.first_burst_bytes,
            "MaxOutstandingR2T": self.outstanding_r2t_max, "DefaultTime2Wait": self.time2wait_s,
            "DefaultTime2Retain": self.time2retain_s, "DataPDUInOrder": True, "DataSequenceInOrder": True,
            "ErrorRecoveryLevel": 0,
        }


@dataclass(frozen=True)
class SessionParams:
    """Outcome of a login, under the field names of ConnParams (core/conn.pxd)."""

    header_digest: bool
    data_digest: bool
    recv_data_bytes_max: int
    send_data_bytes_max: int
    burst_bytes_max: int
    first_burst_bytes: int
    initial_r2t: bool
    immediate_data: bool
    outstanding_r2t_max: int
    cmd_sn: int
    stat_sn: int
    max_cmd_sn: int
    cid: int
    tsih: int
    isid: bytes
    time2wait_s: int
    time2retain_s: int
    queue_depth: int

    def as_dict(self) -> dict[str, int | bool | bytes]:
        """What TargetHandle.adopt and InitiatorStore.attach take."""
        return asdict(self)


class Negotiation:
    """Key values of one login: what this side wishes, what the peer declared, what came out.

    Serves as responder (`respond`) and as offering side (`offer`, `take_answer`); a key is settled once.
    """

    def __init__(self, wishes: Wishes, *, discovery: bool, peer_is_initiator: bool) -> None:
        self.wishes = wishes
        self.discovery = discovery
        self.peer: dict[str, Value] = {}            # declared by the peer
        self.settled: dict[str, Value] = {}         # outcomes
        self._own = wishes.offers()
        self._open: dict[str, Value | tuple[str, ...]] = {}     # offered by us, not answered yet
        self._peer_forbidden = keys.Who.TARGET if peer_is_initiator else keys.Who.INITIATOR

    def take_declared(self, key: Key, text: str) -> None:
        """Notes what the peer declares. ProtocolError: not its key, out of range, or other than it declared before."""
        if key.who is self._peer_forbidden:
            raise ProtocolError(f"{key.name} may not be sent by this side")
        value = keys.declared(key, text)
        if self.peer.setdefault(key.name, value) != value:
            raise ProtocolError(f"{key.name} was declared twice with different values")

    def respond(self, name: str, text: str) -> str | None:
        """Answer to an offer of the peer (None: the key is declarative). ProtocolError when it was settled before."""
        key = KEYS.get(name)
        if key is None:
            return keys.NOT_UNDERSTOOD
        if key.kind is keys.Kind.OBSOLETE:
            return str(key.default)
        if key.phase in (keys.Phase.FULL_FEATURE, keys.Phase.SECURITY):
            return keys.REJECT          # AuthMethod in its own stage does not come here
        if key.declarative:
            self.take_declared(key, text)
            return None
        if name in self.settled:
            raise ProtocolError(f"{name} was negotiated twice")
        if self.discovery and key.normal_only:
            self.settled[name] = self._default(key)
            return keys.IRRELEVANT
        outcome, answer = keys.answer(key, text, self._wish(key))
        self.settled[name] = self._default(key) if outcome is None else outcome
        return answer

    def offer(self) -> list[tuple[str, str]]:
        """All offers of this side, for the offering role."""
        offers = {name: value for name, value in self._own.items() if not (self.discovery and KEYS[name].normal_only)}
        self._open = {name: value for name, value in offers.items() if not KEYS[name].declarative}
        return [(name, ",".join(value) if isinstance(value, tuple) else keys.text_of(value))
                for name, value in offers.items()]

    def take_answer(self, name: str, text: str) -> bool:
        """Whether the pair answers an offer of ours; if so it is settled."""
        if name not in self._open:
            return False
        self.settled[name] = keys.accept(KEYS[name], self._open.pop(name), text)
        return True

    def close(self) -> None:
        """The peer has ended the stage: offers that it left unanswered are settled as section 6.2 says."""
        for name, value in self._open.items():
            self.settled[name] = keys.accept(KEYS[name], value, None)
        self._open.clear()

    def outcome(self, name: str) -> Value:
        """Settled value, or the default of a key that nobody mentioned."""
        return self.settled[name] if name in self.settled else self._default(KEYS[name])

    def params(self, *, cmd_sn: int, stat_sn: int, max_cmd_sn: int, cid: int, tsih: int, isid: bytes) -> SessionParams:
        burst_bytes_max = int(self.outcome("MaxBurstLength"))
        return SessionParams(
            header_digest=self.outcome("HeaderDigest") == "CRC32C",
            data_digest=self.outcome("DataDigest") == "CRC32C",
            recv_data_bytes_max=self.wishes.recv_data_bytes_max,
            send_data_bytes_max=self.peer_recv_bytes_max,
            burst_bytes_max=burst_bytes_max,
            first_burst_bytes=min(int(self.outcome("FirstBurstLength")), burst_bytes_max),
            initial_r2t=bool(self.outcome("InitialR2T")),
            immediate_data=bool(self.outcome("ImmediateData")),
            outstanding_r2t_max=int(self.outcome("MaxOutstandingR2T")),
            time2wait_s=int(self.outcome("DefaultTime2Wait")),
            time2retain_s=int(self.outcome("DefaultTime2Retain")),
            queue_depth=self.wishes.queue_depth,
            cmd_sn=cmd_sn, stat_sn=stat_sn, max_cmd_sn=max_cmd_sn, cid=cid, tsih=tsih, isid=isid)

    @property
    def peer_recv_bytes_max(self) -> int:
        """What the peer takes in one PDU."""
        return int(self.peer.get("MaxRecvDataSegmentLength", self._default(KEYS["MaxRecvDataSegmentLength"])))

    def _wish(self, key: Key) -> Value | tuple[str, ...]:
        if key.name == "FirstBurstLength" and "MaxBurstLength" in self.settled:
            return min(self.wishes.first_burst_bytes, int(self.settled["MaxBurstLength"]))
        return self._own.get(key.name, self._default(key))

    @staticmethod
    def _default(key: Key) -> Value:
        assert key.default is not None
        return key.default


def unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Pairs as a table; ProtocolError when a key comes twice in one exchange."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ProtocolError("a text key came twice in one exchange")
    return table


def login_error(status: LoginStatus, reason: str = "") -> LoginError:
    return LoginError(f"{status.sentence}: {reason}" if reason else status.sentence,
                      status_class=status.status_class, status_detail=status.status_detail)


def in_order(table: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs in the order in which a responder settles them: FirstBurstLength last, as it depends on MaxBurstLength."""
    return sorted(table.items(), key=lambda pair: pair[0] == "FirstBurstLength")
