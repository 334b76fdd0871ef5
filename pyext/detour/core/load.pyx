# A host in the core. It owns its operation slots, their buffers and the table of versions; it borrows a store and a loop.
#
# Invariants
#   - At most one write of a unit is in flight (`busy`), so that a unit's versions are written in increasing order.
#   - acked[u] <= issued[u]; both equal unless a write of u is in flight or ended in an error with an unknown outcome.
#   - acked[u] <= floor[u] <= issued[u]; floor never falls: what was acknowledged or seen once is never undone. This holds
#     over a crash and a reconnect of whatever serves the store as well, for a write in flight is sent again.
#   - In LOAD_IDLE the loop holds no pointer into the generator.
# Cost: no allocation after the start; 13 bytes a unit with verification, about 100 ns a sector to stamp or to check.
#
# A stamp is checked by sector (512 bytes), versions are kept by unit: a read that runs beside a write of the same unit may
# show old and new blocks, but never both inside of one block of the store.
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.stdlib cimport posix_memalign

from detour.core.clock cimport clock_monotonic_ns
from detour.core.debug cimport invariant
from detour.core.reactor cimport (EVENT_LOAD_DONE, command_done, event_new, event_post, loop_defer, loop_timer,
                                  loop_timer_stop, loop_undefer)
from detour.core.stamps cimport *
from detour.core.stats cimport stats_record
from detour.core.store cimport IO_FUA, STORE_FLUSH, STORE_READ, STORE_WRITE, store_submit

cdef enum:
    FREE_RANGE_TRIES = 16       # places tried for a write before a read is sent instead
    PER_MILLION = 1000000


# ---------------------------------------------------------------------------------------------------- small helpers

cdef inline ns_t load_now(Load* load) noexcept nogil:
    return load.loop.now_ns if load.loop.clock_virtual else clock_monotonic_ns()


cdef inline uint64_t load_random(Load* load) noexcept nogil:
    load.random_state += 1
    return stamp_mix(load.random_state)


cdef inline bint load_chance(Load* load, uint32_t share_ppm) noexcept nogil:
    return (load_random(load) >> 11) % PER_MILLION < share_ppm


cdef inline uint64_t unit_sector(Load* load, uint64_t unit) noexcept nogil:
    return (load.offset_bytes + unit * load.unit_bytes) // STAMP_BYTES


# --------------------------------------------------------------------------------------------------------- checking

cdef int sector_version(Load* load, const uint8_t* place, uint64_t region_offset, bint base_allowed,
                        uint32_t* version) noexcept nogil:
    if base_allowed and load.base != NULL and memcmp(place, load.base + region_offset, STAMP_BYTES) == 0:
        version[0] = 0
        return STAMP_GOOD
    return stamp_read(place, load.seed_word, (load.offset_bytes + region_offset) // STAMP_BYTES, version)


# Answers a StampFault, with the sector where it was found; *oldest is the oldest version in a good unit.
cdef int unit_check(Load* load, const uint8_t* data, uint64_t unit, uint32_t version_min, uint32_t version_max,
                    uint32_t* oldest, uint64_t* at_bytes) noexcept nogil:
    cdef uint64_t index, place
    cdef uint32_t version = 0
    cdef uint32_t block_version = 0
    cdef int fault
    oldest[0] = version_max
    for index in range(load.unit_bytes // STAMP_BYTES):
        place = index * STAMP_BYTES
        at_bytes[0] = place
        fault = sector_version(load, data + place, unit * load.unit_bytes + place, version_min == 0, &version)
        if fault != STAMP_GOOD:
            return fault
        if version < version_min:
            return STAMP_OLD
        if version > version_max:
            return STAMP_NEW
        if place % load.store.block_bytes == 0:
            block_version = version
        elif version != block_version:
            return STAMP_MIXED
        if version < oldest[0]:
            oldest[0] = version
    return STAMP_GOOD


cdef void note_mismatch(Load* load, int fault, const uint8_t* sector, uint64_t offset_bytes, uint32_t version_min,
                        uint32_t version_max) noexcept nogil:
    cdef const uint64_t* words = <const uint64_t*>sector
    load.sections[load.section].mismatches += 1
    if load.mismatch.kind != 0:
        return
    load.mismatch.op = STORE_READ
    load.mismatch.offset_bytes = offset_bytes
    load.mismatch.length_bytes = STAMP_BYTES
    load.mismatch.expected_min = version_min
    load.mismatch.expected_max = version_max
    load.mismatch.found_seed = words[0]
    load.mismatch.found_sector = words[1]
    load.mismatch.found_version = words[2]
    load.mismatch.section = load.section
    load.mismatch.kind = fault


cdef void check_read(Load* load, LoadSlot* slot) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t oldest = 0
    cdef uint64_t at_bytes = 0
    cdef uint64_t unit
    cdef const uint8_t* data
    cdef int fault
    for i in range(slot.units):
        unit = slot.first_unit + i
        if slot.floors[i] == 0 and load.base == NULL:
            continue                                    # what was there before the first write is not known
        data = slot.data + i * load.unit_bytes
        fault = unit_check(load, data, unit, slot.floors[i], load.issued[unit], &oldest, &at_bytes)
        load.sections[load.section].checked_bytes += load.unit_bytes
        if fault != STAMP_GOOD:
            note_mismatch(load, fault, data + at_bytes, slot.io.offset_bytes + i * load.unit_bytes + at_bytes,
                          slot.floors[i], load.issued[unit])
        elif oldest > load.floor[unit]:
            load.floor[unit] = oldest


cdef void load_compare(Load* load, const uint8_t* data, uint64_t first, uint64_t count,
                        uint64_t* figures) noexcept nogil:
    cdef uint64_t i
    cdef uint64_t at_bytes = 0
    cdef uint32_t oldest = 0
    for i in range(count):
        if load.acked[first + i] == 0 and load.base == NULL:
            figures[2] += 1
            continue
        figures[0] += 1
        if unit_check(load, data + i * load.unit_bytes, first + i, load.acked[first + i], load.issued[first + i],
                      &oldest, &at_bytes) != STAMP_GOOD:
            if figures[1] == 0:
                figures[3] = (first + i) * load.unit_bytes + at_bytes
            figures[1] += 1


# ---------------------------------------------------------------------------------------------------------- sending

cdef bint range_free(Load* load, uint64_t first_unit, uint32_t units) noexcept nogil:
    cdef uint32_t i
    if load.busy == NULL:
        return True
    for i in range(units):
        if load.busy[first_unit + i]:
            return False
    return True


cdef uint32_t next_units(Load* load) noexcept nogil:
    if load.io_units_max == load.io_units_min:
        return load.io_units_min
    return load.io_units_min + <uint32_t>(load_random(load) % (load.io_units_max - load.io_units_min + 1))


# Where the next operation goes; False: no place is free for a write.
cdef bint choose_place(Load* load, LoadSlot* slot, bint write) noexcept nogil:
    cdef int i
    cdef uint64_t span
    slot.units = next_units(load)
    if load.mode == LOAD_ORDERED and write:
        slot.units = 1
        slot.first_unit = stamp_ordered_unit(load.units, load.order)
        return load.writes_in_flight == 0
    if load.mode == LOAD_SEQUENTIAL:
        if load.cursor >= load.units:
            load.cursor = 0
        if slot.units > load.units - load.cursor:
            slot.units = <uint32_t>(load.units - load.cursor)
        slot.first_unit = load.cursor
        if write and not range_free(load, slot.first_unit, slot.units):
            return False
        load.cursor += slot.units
        return True
    span = load.units - slot.units + 1
    for i in range(FREE_RANGE_TRIES):
        slot.first_unit = load_random(load) % span
        if load.io_units_min == load.io_units_max and slot.units > 1:
            slot.first_unit -= slot.first_unit % slot.units
        if not write or range_free(load, slot.first_unit, slot.units):
            return True
    return False


cdef void fill_write(Load* load, LoadSlot* slot) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t unit, index, place, sector
    cdef uint8_t* data
    for i in range(slot.units):
        unit = slot.first_unit + i
        data = slot.data + i * load.unit_bytes
        load.busy[unit] = 1
        if load.mode == LOAD_ORDERED:
            load.issued[unit] = <uint32_t>(load.order + 1)
        elif not load.rewriting or load.issued[unit] != load.acked[unit]:
            load.issued[unit] += 1
        elif load.issued[unit] == 0:
            memcpy(data, load.base + unit * load.unit_bytes, load.unit_bytes)
            continue
        sector = unit_sector(load, unit)
        for index in range(load.unit_bytes // STAMP_BYTES):
            place = index * STAMP_BYTES
            stamp_write(data + place, load.seed_word, sector + index, load.issued[unit])


cdef LoadSlot* slot_take(Load* load) noexcept nogil:
    cdef LoadSlot* slot = load.free_head
    load.free_head = slot.next
    slot.next = NULL
    load.in_flight += 1
    return slot


cdef void slot_give(Load* load, LoadSlot* slot) noexcept nogil:
    invariant(load.in_flight > 0, b"a slot came back twice")
    slot.next = load.free_head
    load.free_head = slot
    load.in_flight -= 1


cdef void send_slot(Load* load, LoadSlot* slot, uint8_t op, ns_t intended_ns) noexcept nogil:
    cdef Io* io = &slot.io
    memset(io, 0, sizeof(Io))
    io.op = op
    io.done = on_done
    io.owner = slot
    slot.intended_ns = intended_ns
    if op != STORE_FLUSH:
        io.data = slot.data
        io.offset_bytes = load.offset_bytes + slot.first_unit * load.unit_bytes
        io.length_bytes = slot.units * load.unit_bytes
    if op == STORE_WRITE:
        load.writes_in_flight += 1
        load.writes_since_flush += 1
        if load.verify:
            fill_write(load, slot)
        if load.fua_share_ppm and load_chance(load, load.fua_share_ppm):
            io.flags = IO_FUA
    elif op == STORE_READ and load.verify:
        memcpy(slot.floors, load.floor + slot.first_unit, slot.units * sizeof(uint32_t))
    load.sent += 1
    store_submit(load.store, io)


# Sends the next operation; False when that has to wait for one in flight.
cdef bint send_next(Load* load, ns_t intended_ns) noexcept nogil:
    cdef LoadSlot* slot = slot_take(load)
    cdef uint8_t op = STORE_WRITE
    if load.flush_every and load.writes_since_flush >= load.flush_every:
        load.writes_since_flush = 0
        send_slot(load, slot, STORE_FLUSH, intended_ns)
        return True
    if load.read_share_ppm and load_chance(load, load.read_share_ppm):
        op = STORE_READ
    if not choose_place(load, slot, op == STORE_WRITE):
        # All places that were tried are being written: read instead, where reads are wanted at all.
        op = STORE_READ
        if load.read_share_ppm == 0 or not choose_place(load, slot, False):
            slot_give(load, slot)
            return False
    send_slot(load, slot, op, intended_ns)
    return True


cdef void load_on_pump(void* owner) noexcept nogil:
    cdef Load* load = <Load*>owner
    cdef ns_t now_ns = load_now(load)
    cdef ns_t intended_ns = now_ns
    cdef LoadSection* section = &load.sections[load.section]
    while load.state == LOAD_RUNNING:
        if (load.operations and load.sent >= load.operations) or (load.deadline_ns and now_ns >= load.deadline_ns):
            stop_begin(load)
            return
        if load.free_head == NULL:
            return
        if load.interval_ns > 0:
            intended_ns = <ns_t>load.next_ns
            if intended_ns > now_ns:
                loop_timer(load.loop, &load.timer, intended_ns - now_ns)
                return
            if <uint64_t>(now_ns - intended_ns) > section.late_ns:
                section.late_ns = <uint64_t>(now_ns - intended_ns)
        if not send_next(load, intended_ns):
            return
        load.next_ns += load.interval_ns


# ------------------------------------------------------------------------------------------------------- completion

cdef void note_error(Load* load, Io* io) noexcept nogil:
    load.sections[load.section].errors += 1
    if load.error.kind == 0:
        load.error.status = io.status
        load.error.op = io.op
        load.error.offset_bytes = io.offset_bytes
        load.error.length_bytes = io.length_bytes
        load.error.section = load.section
        load.error.kind = 1


cdef void end_write(Load* load, LoadSlot* slot) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t unit
    cdef bint good = slot.io.status >= 0
    load.writes_in_flight -= 1
    if good and load.mode == LOAD_ORDERED:
        load.order += 1
    if not load.verify:
        return
    for i in range(slot.units):
        unit = slot.first_unit + i
        load.busy[unit] = 0
        if good:
            load.acked[unit] = load.issued[unit]
            load.floor[unit] = load.issued[unit]


cdef void note_good(Load* load, LoadSlot* slot, ns_t latency_ns) noexcept nogil:
    cdef LoadSection* section = &load.sections[load.section]
    if <uint64_t>latency_ns > section.longest_ns:
        section.longest_ns = <uint64_t>latency_ns
    if slot.io.op == STORE_READ:
        section.reads += 1
        section.read_bytes += slot.io.length_bytes
        stats_record(&section.read_ns, latency_ns)
        if load.verify:
            check_read(load, slot)
    elif slot.io.op == STORE_WRITE:
        section.writes += 1
        section.write_bytes += slot.io.length_bytes
        stats_record(&section.write_ns, latency_ns)
    else:
        section.flushes += 1
        stats_record(&section.flush_ns, latency_ns)


cdef void on_done(Io* io) noexcept nogil:
    cdef LoadSlot* slot = <LoadSlot*>io.owner
    cdef Load* load = slot.load
    cdef ns_t now_ns = load_now(load)
    if io.op == STORE_WRITE:
        end_write(load, slot)
    if io.status >= 0:
        note_good(load, slot, now_ns - slot.intended_ns if now_ns > slot.intended_ns else 0)
    else:
        note_error(load, io)
    section_time(load, now_ns)
    slot_give(load, slot)
    if io.status == E_CLOSED and load.state == LOAD_RUNNING:
        stop_begin(load)                    # the store is gone: nothing will ever succeed again
    elif load.state == LOAD_STOPPING:
        stop_end(load)
    else:
        loop_defer(load.loop, &load.pump)


# ------------------------------------------------------------------------------------------- start, stop and sections

cdef inline void section_time(Load* load, ns_t now_ns) noexcept nogil:
    load.sections[load.section].elapsed_ns = load.section_base_ns + <uint64_t>(now_ns - load.section_began_ns)


cdef void section_begin(Load* load, uint32_t section) noexcept nogil:
    load.section = section
    load.section_began_ns = load_now(load)
    load.section_base_ns = load.sections[section].elapsed_ns


cdef void stop_begin(Load* load) noexcept nogil:
    load.state = LOAD_STOPPING
    stop_end(load)


cdef void stop_end(Load* load) noexcept nogil:
    cdef Command* event
    cdef Command* command = load.stop_command
    cdef Loop* loop = load.loop
    cdef int i
    if load.in_flight:
        return
    loop_timer_stop(loop, &load.timer)
    loop_timer_stop(loop, &load.end_timer)
    loop_undefer(loop, &load.pump)
    section_time(load, load_now(load))
    event = event_new(loop, EVENT_LOAD_DONE, load.id)
    if event != NULL:
        event.results[0] = load.sent
        for i in range(LOAD_SECTIONS):
            event.results[1] += load.sections[i].errors
            event.results[2] += load.sections[i].mismatches
    load.stop_command = NULL
    load.state = LOAD_IDLE                  # from here on Python may free the generator
    if event != NULL:
        event_post(loop, event)
    if command != NULL:
        command_done(command, OK)


cdef void load_on_time_over(void* owner) noexcept nogil:
    cdef Load* load = <Load*>owner
    if load.state == LOAD_RUNNING:
        stop_begin(load)


cdef void load_start(Command* command) noexcept nogil:
    cdef Load* load = <Load*>command.owner
    if load.state != LOAD_IDLE:
        command_done(command, E_BUSY)
        return
    load.state = LOAD_RUNNING
    load.operations = load.sent + command.args[1] if command.args[1] else 0
    section_begin(load, load.section)
    load.next_ns = <double>load.section_began_ns
    load.deadline_ns = load.section_began_ns + <ns_t>command.args[0] if command.args[0] else 0
    if command.args[0]:
        loop_timer(load.loop, &load.end_timer, <ns_t>command.args[0])
    loop_defer(load.loop, &load.pump)
    command_done(command, OK)


cdef void load_stop(Command* command) noexcept nogil:
    cdef Load* load = <Load*>command.owner
    if load.state == LOAD_IDLE:
        command_done(command, OK)
    elif load.stop_command != NULL:
        command_done(command, E_BUSY)
    else:
        load.stop_command = command
        stop_begin(load)


cdef void load_section(Command* command) noexcept nogil:
    cdef Load* load = <Load*>command.owner
    if load.state != LOAD_IDLE:
        section_time(load, load_now(load))
    section_begin(load, <uint32_t>command.args[0])
    command_done(command, OK)


cdef void load_rewrite(Command* command) noexcept nogil:
    cdef Load* load = <Load*>command.owner
    load.rewriting = command.args[0] != 0
    command_done(command, OK)


# ---------------------------------------------------------------------------------------------------------- memory

cdef int load_tables(Load* load) noexcept nogil:
    # Slots, their buffers and, with verification, the versions.
    cdef uint64_t slot_bytes = load.io_units_max * load.unit_bytes
    cdef uint64_t* words
    cdef uint64_t i
    load.slots = <LoadSlot*>calloc(load.depth, sizeof(LoadSlot))
    load.floor_memory = <uint32_t*>calloc(<size_t>load.depth * load.io_units_max, sizeof(uint32_t))
    if load.slots == NULL or load.floor_memory == NULL:
        return E_NOMEM
    if posix_memalign(<void**>&load.slot_memory, 4096, load.depth * slot_bytes) != 0:
        load.slot_memory = NULL
        return E_NOMEM
    words = <uint64_t*>load.slot_memory
    for i in range(load.depth * slot_bytes // sizeof(uint64_t)):
        words[i] = stamp_mix(load.seed_word + i)        # data that does not compress, for loads without verification
    for i in range(load.depth):
        load.slots[i].load = load
        load.slots[i].data = load.slot_memory + i * slot_bytes
        load.slots[i].floors = load.floor_memory + i * load.io_units_max
        load.slots[i].next = load.free_head
        load.free_head = &load.slots[i]
    if load.verify:
        load.acked = <uint32_t*>calloc(load.units, sizeof(uint32_t))
        load.issued = <uint32_t*>calloc(load.units, sizeof(uint32_t))
        load.floor = <uint32_t*>calloc(load.units, sizeof(uint32_t))
        load.busy = <uint8_t*>calloc(load.units, 1)
        if load.acked == NULL or load.issued == NULL or load.floor == NULL or load.busy == NULL:
            return E_NOMEM
    return OK


cdef void load_free(Load* load) noexcept nogil:
    free(load.slots)
    free(load.slot_memory)
    free(load.floor_memory)
    free(load.acked)
    free(load.issued)
    free(load.floor)
    free(load.busy)
    free(load)
