"""From main's registrations to those that hosts have left: any state to any other, on a model of the standard."""
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detour.iscsi.registration_plan import (
    APTPL,
    CLEAR,
    PREEMPT,
    REGISTER,
    RELEASE,
    RESERVE,
    Plan,
    Port,
    Registrations,
    Row,
    Step,
    parse_registrations,
)
from tests.support.reservations import TYPES, Model, transport_id

HOSTS = [Port(f"iqn.host{number}", bytes([0x80, 0, 0, 0, 0, number])) for number in range(4)]
OWN, OWN_KEY = Port("iqn.gateway", bytes([0x80, 0, 0, 0, 0, 99])), 0xDE7
ALL_TYPES = (7, 8)


class Main:
    """The model, by ports."""

    def __init__(self, state):
        holder = None if state.holder is None else state.holder
        self.model = Model({port: row.key for port, row in state.rows.items()}, state.kind, holder)

    def state(self):
        return Registrations({port: Row(key) for port, key in self.model.keys.items()}, self.model.kind,
                             self.model.holder)

    def do(self, step):
        return self.model.do(step.actor, step.action, step.key, step.action_key, step.kind)[0] == 0

    def writers(self):
        return {port for port in HOSTS if self.model.may(port, True)}


def states(hosts=HOSTS):
    def reserved(rows):
        none = st.just(Registrations(rows))
        if not rows:
            return none
        kinds = st.tuples(st.sampled_from(TYPES), st.sampled_from(sorted(rows)))
        return none | kinds.map(lambda kind: Registrations(rows, kind[0], None if kind[0] in ALL_TYPES else kind[1]))
    return st.dictionaries(st.sampled_from(hosts), st.integers(1, 3).map(Row), max_size=4).flatmap(reserved)


def go(plan, main, refuses=lambda step: False):
    """Every step that is taken, and sets of hosts that may write on the way."""
    failed, steps, writers = set(), [], [main.writers()]
    while (step := plan.next(main.state(), failed)) is not None:
        assert len(steps) < 60, steps
        before = main.state()
        if refuses(step) or not main.do(step) or main.state() == before:
            failed.add(step)
        else:
            writers.append(main.writers())
        steps.append(step)
    return steps, writers


@settings(max_examples=120, deadline=None)
@given(states(), states())
def test_any_state_is_reached_from_any_other(seed, wanted):
    main = Main(seed)
    plan = Plan(wanted, OWN, OWN_KEY, frozenset(seed.rows))
    steps, writers = go(plan, main)
    assert main.state() == wanted and plan.differences(main.state()) == []
    never = set(HOSTS) - writers[0] - writers[-1]
    assert not any(never & now for now in writers), steps


def test_who_is_gone_is_gone_before_registrants_may_write():
    one, two = HOSTS[:2]
    main = Main(Registrations({one: Row(1), two: Row(2)}, 1, one))
    _, writers = go(Plan(Registrations({one: Row(1)}, 5, one), OWN, OWN_KEY, frozenset(HOSTS)), main)
    assert not any(two in now for now in writers)


@settings(max_examples=120, deadline=None)
@given(states(), states())
def test_who_is_gone_need_not_come_unless_a_key_is_shared(seed, wanted):
    keys = [row.key for row in seed.rows.values()] + [row.key for row in wanted.rows.values()]
    seed = Registrations({port: Row(0x100 + number) for number, port in enumerate(sorted(seed.rows))}, seed.kind,
                         seed.holder)
    assert keys or not seed.rows
    steps, _ = go(Plan(wanted, OWN, OWN_KEY, frozenset(seed.rows)), Main(seed))
    assert all(step.actor in wanted.rows or step.actor == OWN for step in steps)


@settings(max_examples=120, deadline=None)
@given(states(), states(), st.sets(st.sampled_from([RESERVE, RELEASE, CLEAR, PREEMPT]), min_size=1),
       st.sampled_from([None, *HOSTS]))
def test_what_main_refuses_ends_and_is_told(seed, wanted, refused, shut_out):
    main = Main(seed)
    plan = Plan(wanted, OWN, OWN_KEY, frozenset(seed.rows))
    go(plan, main, lambda step: step.action in refused or step.actor == shut_out)
    told = plan.differences(main.state())
    assert bool(told) == (Registrations({port: row for port, row in main.state().rows.items() if port != OWN},
                                        main.state().kind, main.state().holder) != wanted)
    assert OWN not in main.state().rows


@settings(max_examples=120, deadline=None)
@given(states(), states(HOSTS[:2]))
def test_strangers_are_left_alone(seed, wanted):
    """Hosts 2 and 3 came to main by another way during the detour."""
    main, strange = Main(seed), {port: row for port, row in seed.rows.items() if port in HOSTS[2:]}
    holder = seed.holder
    go(Plan(wanted, OWN, OWN_KEY, frozenset(HOSTS[:2])), main)
    after = main.state()
    assert {port: row for port, row in after.rows.items() if port in HOSTS[2:]} == strange
    if holder in strange:
        assert (after.kind, after.holder) == (seed.kind, holder)
    assert {port: row for port, row in after.rows.items() if port in HOSTS[:2]} == dict(wanted.rows)


@pytest.mark.parametrize("kind", [5, 6, 7, 8])
def test_the_gateway_stays_a_registrant_while_it_writes(kind):
    wanted = Registrations({HOSTS[0]: Row(1)}, kind, None if kind in ALL_TYPES else HOSTS[0])
    main, plan = Main(wanted), Plan(wanted, OWN, OWN_KEY, frozenset(), keep_own=True)
    assert not plan.may_write(main.state())
    assert go(plan, main)[0] == [Step(OWN, REGISTER, 0, OWN_KEY)]
    assert plan.may_write(main.state()) and plan.differences(main.state()) == []
    go(Plan(wanted, OWN, OWN_KEY, frozenset()), main)
    assert main.state() == wanted


@pytest.mark.parametrize("before,after", [(False, True), (True, False)])
def test_whether_they_outlive_power_is_set_without_a_host(before, after):
    rows = {HOSTS[0]: Row(1)}
    plan = Plan(Registrations(rows, durable=after), OWN, OWN_KEY, frozenset())
    step = plan.next(Registrations(rows, durable=before), set())
    flags = APTPL if after else 0
    assert step == Step(OWN, REGISTER, 0, OWN_KEY, flags=flags)
    step = plan.next(Registrations({**rows, OWN: Row(OWN_KEY)}, durable=after), set())
    assert step == Step(OWN, REGISTER, OWN_KEY, 0, flags=flags)
    assert plan.differences(Registrations(rows, durable=before)) != []


def test_a_main_whose_registrations_never_outlive_power():
    rows, failed, main = {HOSTS[0]: Row(1)}, set(), Registrations({HOSTS[0]: Row(1)})
    plan = Plan(Registrations(rows, durable=True), OWN, OWN_KEY, frozenset())
    register, again = plan.next(main, failed), Step(OWN, REGISTER, OWN_KEY, OWN_KEY, flags=APTPL)
    with_own = Registrations({**rows, OWN: Row(OWN_KEY)})
    assert register == Step(OWN, REGISTER, 0, OWN_KEY, flags=APTPL) and plan.next(with_own, failed) == again
    failed.add(again)
    assert plan.next(with_own, failed) == Step(OWN, REGISTER, OWN_KEY, 0, flags=APTPL)
    assert plan.next(main, failed) is None and "APTPL" in plan.differences(main)[0]


def test_main_as_it_lists_them():
    def descriptor(key, flags, kind, identity):
        return struct.pack(">Q4xBB4xHI", key, flags, kind, 1, len(identity)) + identity
    fibre = bytes([0]) + bytes(23)
    body = (descriptor(1, 0, 0, transport_id("IQN.Host0", HOSTS[0].isid))
            + descriptor(2, 3, 5, transport_id("iqn.host1", HOSTS[1].isid)) + descriptor(3, 0, 0, fibre)
            + descriptor(4, 0, 0, transport_id("iqn.device", None)))
    status = struct.pack(">II", 7, len(body)) + body
    assert parse_registrations(status, True) == Registrations(
        {HOSTS[0]: Row(1), HOSTS[1]: Row(2, True)}, 5, HOSTS[1], True, (3, 4))
    for cut in range(len(status)):
        parse_registrations(status[:cut])


def test_a_command_as_it_is_sent():
    cdb, data = Step(HOSTS[0], PREEMPT, 1, 2, 5, APTPL).command()
    assert cdb == bytes([0x5F, 4, 5, 0, 0, 0, 0, 0, 24, 0])
    assert data == struct.pack(">QQ4xB3x", 1, 2, APTPL)
