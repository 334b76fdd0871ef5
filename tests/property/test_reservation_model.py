"""Any sequence of reservation commands of four hosts against the model in tests/support/reservations.py: the answers,
the keys, the holder, the unit attentions, and who may read and write afterwards."""
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pdu_client import Host, World
from tests.support.reservations import (
    CLEAR,
    CONFLICT,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    RESERVE,
    TYPES,
    WRITE_ALL,
    Model,
    attentions,
    full_status,
    generation,
    keys,
    out,
    reservation,
)

HOSTS = 4
hosts_of = st.integers(0, HOSTS - 1)
key_of = st.sampled_from([0, 1, 2, 3])
kinds = st.sampled_from([*TYPES, *TYPES, 0, 2, 9])
actions = st.sampled_from([REGISTER, REGISTER, REGISTER_AND_IGNORE, RESERVE, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT,
                           PREEMPT_AND_ABORT])
# (host, action, key: None stands for the right one, action key, type: None stands for the type in force, return)
commands = st.tuples(hosts_of, actions, st.one_of(st.none(), st.none(), st.none(), key_of), key_of,
                     st.one_of(st.none(), kinds), st.integers(0, 9))


def check_state(hosts: list[Host], model: Model, asker: int) -> None:
    assert keys(hosts[asker]) == list(model.keys.values())
    assert generation(hosts[asker]) == model.generation
    status = full_status(hosts[asker])
    assert [int(row.name[-1]) for row in status] == list(model.keys)
    assert [row.holder for row in status] == [model.holds(host) for host in model.keys]
    if model.kind == 0:
        assert reservation(hosts[asker]) is None
    else:
        holder_key = 0 if model.kind >= WRITE_ALL else model.keys[model.holder]
        assert reservation(hosts[asker]) == (holder_key, model.kind)


def check_rights(hosts: list[Host], model: Model) -> None:
    for number, host in enumerate(hosts):
        assert host.read(0, 1).status == (0 if model.may(number, False) else CONFLICT)
        assert host.write(0, bytes(512)).status == (0 if model.may(number, True) else CONFLICT)


@settings(max_examples=60, deadline=None)
@given(st.lists(commands, min_size=4, max_size=30))
def test_any_sequence_does_what_the_standard_says(sequence):
    world = World(size_bytes=65536)
    isids = [bytes([0, 2, 61, 0, 0, number]) for number in range(HOSTS)]
    hosts = [Host(world, name=f"iqn.2026-01.example:h{number}", isid=isids[number]) for number in range(HOSTS)]
    model = Model()
    for number, action, key, action_key, kind, again in sequence:
        if key is None:
            key = model.keys.get(number, 0)
        if kind is None:
            kind = model.kind or 1
        expected = model.do(number, action, key, action_key, kind)
        result = out(hosts[number], action, key, action_key, kind=kind)
        assert (result.status, result.sense) == expected, (number, action, key, action_key, kind)
        told = model.told if expected == Model.GOOD else []
        for host in range(HOSTS):
            assert attentions(hosts[host]) == sorted({sense for to, sense in told if to == host}, reverse=True)[:1]
        if again == 0:                                  # the session ends, the registration does not
            hosts[number].close()
            hosts[number] = Host(world, name=f"iqn.2026-01.example:h{number}", isid=isids[number])
        check_state(hosts, model, (number + 1) % HOSTS)
        check_rights(hosts, model)
    for host in hosts:
        host.close()
    world.close()
