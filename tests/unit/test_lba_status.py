"""GET LBA STATUS of a volume in a detour: what main says and what the overlay has, against a model block by block."""
import random
import struct

import pytest

from detour.core._testing_volume import become_scsi, scsi_answer, scsi_command
from tests.support.volume_world import VolumeWorld

MAPPED, DEALLOCATED, ANCHORED = 0, 1, 2
ROOM = 4096


@pytest.fixture
def world():
    world = VolumeWorld(1, tail_blocks=7)
    become_scsi(world.main)
    world.command(world.volume.set_offered({}, thin=True))
    world.freeze()
    return world


def ask(world, lba, length=ROOM):
    cdb = struct.pack(">BBQIBB", 0x9E, 0x12, lba, length, 0, 0)
    number = world.driver.command(cdb, data_in_max=length)
    world.turn()
    return number


def told(*runs):
    """Main's answer: (lba, blocks, status)."""
    return struct.pack(">II", 4 + 16 * len(runs), 0) + b"".join(struct.pack(">QIB3x", *run) for run in runs)


def end(world, number):
    world.turn(2)
    status, _, sense, data = world.driver.take_command(number)
    return status, sense, data


def runs_of(data):
    length = int.from_bytes(data[:4], "big") + 4
    assert length == len(data)
    return [struct.unpack_from(">QIB", data, at) for at in range(8, length, 16)]


def test_main_alone(world):
    number = ask(world, 3)
    assert int.from_bytes(scsi_command(world.main)["cdb"][10:14], "big") == ROOM
    scsi_answer(world.main, data_in=told((0, 10, MAPPED), (10, 500, DEALLOCATED), (510, 9, ANCHORED)))
    assert runs_of(end(world, number)[2]) == [(3, 7, MAPPED), (10, 500, DEALLOCATED), (510, 9, ANCHORED)]
    assert world.reactor.buffers_taken_bytes == 0


def test_the_overlay_comes_first(world):
    world.write(8, 4)
    world.unmap(20, 10)
    world.settle()
    number = ask(world, 0)
    scsi_answer(world.main, data_in=told((0, 25, DEALLOCATED), (25, 494, MAPPED)))
    assert runs_of(end(world, number)[2]) == [(0, 8, DEALLOCATED), (8, 4, MAPPED), (12, 18, DEALLOCATED),
                                              (30, 489, MAPPED)]


def test_a_main_that_is_not_thin_has_nothing_deallocated(world):
    world.command(world.volume.set_offered({}, thin=False))
    world.unmap(20, 10)
    world.settle()
    number = ask(world, 18)
    scsi_answer(world.main, data_in=told((0, 519, MAPPED)))
    assert runs_of(end(world, number)[2]) == [(18, 501, MAPPED)]


def test_what_a_round_flushes_meanwhile_still_counts(world):
    """Main has answered before the piece came to it."""
    world.command(world.volume.copy_start(world.backup))
    world.finish_copy()
    world.command(world.volume.catch_up())
    world.write(0, 8)
    world.settle()
    number = ask(world, 0)
    round_ticket = world.volume.round()
    for _ in range(60):
        world.turn()
        for index in range(len(world.main.pending())):
            if index > 0:                           # all but the question
                world.main.complete(index)
                break
        world.media.complete_all()
    assert world.stat("dirty_blocks") == 0 and round_ticket in world.answers
    scsi_answer(world.main, data_in=told((0, 519, DEALLOCATED)))
    assert runs_of(end(world, number)[2]) == [(0, 8, MAPPED), (8, 511, DEALLOCATED)]


@pytest.mark.parametrize("length", [0, 4, 8, 16, 24, 40, 41])
def test_the_allocation_length_cuts(world, length):
    world.write(8, 4)
    world.settle()
    whole = told((0, 8, DEALLOCATED), (8, 4, MAPPED), (12, 507, DEALLOCATED))
    number = ask(world, 0, length)
    scsi_answer(world.main, data_in=told((0, 519, DEALLOCATED)))
    assert end(world, number)[2] == whole[:length] or length == 0
    assert world.reactor.buffers_taken_bytes == 0


@pytest.mark.parametrize("answer", [b"", bytes(8), told()[:7], told((5, 4, DEALLOCATED)), told((0, 0, 1)),
                                    told((0, 9, 1))[:20]])
def test_a_main_that_tells_nothing_of_the_first_block(world, answer):
    number = ask(world, 2)
    scsi_answer(world.main, data_in=answer)
    assert runs_of(end(world, number)[2]) == [(2, 517, MAPPED)]


def test_mains_refusal_is_passed_on(world):
    number = ask(world, 0)
    sense = bytes.fromhex("700005000000000a00000000200000000000")
    scsi_answer(world.main, scsi_status=2, sense=sense, status=-11)
    assert end(world, number)[:2] == (-11, sense)
    assert world.reactor.buffers_taken_bytes == 0


def test_blocks_that_are_not_there_are_mains_to_refuse(world):
    number = ask(world, 519, 24)
    assert int.from_bytes(scsi_command(world.main)["cdb"][10:14], "big") == 24
    scsi_answer(world.main, scsi_status=2, sense=bytes(18), status=-11)
    assert end(world, number)[0] == -11


@pytest.mark.parametrize("seed", range(12))
def test_block_by_block(seed):
    """Any mix of writes and unmaps over any answer of main: each block that is told of is told right."""
    chance = random.Random(seed)
    world = VolumeWorld(1, tail_blocks=7)
    become_scsi(world.main)
    world.command(world.volume.set_offered({}, thin=True))
    world.freeze()
    model, main_runs, at = [], [], 0
    while at < world.blocks:
        blocks = min(chance.choice([1, 1, 2, 40]), world.blocks - at)
        main_runs.append((at, blocks, chance.choice([MAPPED, DEALLOCATED, ANCHORED])))
        model += [main_runs[-1][2]] * blocks
        at += blocks
    for _ in range(chance.choice([3, 30, 300])):
        lba = chance.randrange(world.blocks)
        blocks = min(chance.choice([1, 2, 9]), world.blocks - lba)
        zero = chance.random() < 0.5
        (world.unmap if zero else world.write)(lba, blocks)
        world.settle(3)
        model[lba:lba + blocks] = [DEALLOCATED if zero else MAPPED] * blocks
    world.settle()
    lba = 0
    while lba < world.blocks:
        number = ask(world, lba)
        first = next(i for i, run in enumerate(main_runs) if run[0] + run[1] > lba)
        scsi_answer(world.main, data_in=told(*main_runs[first:first + 255])[:ROOM])
        found = runs_of(end(world, number)[2])
        assert 1 <= len(found) <= 255
        for start, blocks, status in found:
            assert start == lba and model[start:start + blocks] == [status] * blocks
            lba += blocks
