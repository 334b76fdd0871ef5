# The rules of reservations: what each PERSISTENT RESERVE OUT does, RESERVE and RELEASE beside them, who may do what.
#
# Owns: the two states (in force, prepared) and the effects of the prepared one on each registrant of the one in force.
# Invariants: a PERSISTENT RESERVE OUT works on a copy and only on it; commit puts the copy in force and queues all unit
# attentions at once, revert drops it. `restricting` and the standing of each entry of the nexus table follow the state in
# force: they are renewed at every commit, load and login.
# Cost: admit is two loads while nothing is reserved and no attention is pending; else one hash look-up and one load of
# the table of rights. A change costs a copy of the state and a pass over nexuses times registrants.
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from detour.core.debug cimport invariant
from detour.core.device cimport NEXUS_LOGIN, NEXUS_LOGOUT, NEXUS_LUN_RESET, NEXUS_TARGET_RESET, Nexus
from detour.core.endian cimport get_be16, get_be32, get_be64
from detour.core.nexus cimport *
from detour.core.registrants cimport *
from detour.core.rights cimport *
from detour.core.scsi cimport *
from detour.core.types cimport *

cdef enum:
    OPCODE_RESERVE_6 = 0x16
    OPCODE_RELEASE_6 = 0x17
    OPCODE_RESERVE_10 = 0x56
    OPCODE_RELEASE_10 = 0x57
    OPCODE_PERSISTENT_IN = 0x5E
    OPCODE_PERSISTENT_OUT = 0x5F
    PARAMETERS_BYTES = 24
    TRANSPORT_ID_BYTES_MIN = 24
    FLAG_SPEC_I_PT = 0x08       # byte 20 of the parameter list
    FLAG_ALL_TG_PT = 0x04
    FLAG_APTPL = 0x01
    FLAG_MOVE_UNREG = 0x02      # byte 17, REGISTER AND MOVE
    FLAG_MOVE_APTPL = 0x01

cdef enum OutAction:
    OUT_REGISTER = 0
    OUT_RESERVE = 1
    OUT_RELEASE = 2
    OUT_CLEAR = 3
    OUT_PREEMPT = 4
    OUT_PREEMPT_AND_ABORT = 5
    OUT_REGISTER_AND_IGNORE = 6
    OUT_REGISTER_AND_MOVE = 7

cdef enum InAction:
    IN_READ_KEYS = 0
    IN_READ_RESERVATION = 1
    IN_REPORT_CAPABILITIES = 2
    IN_READ_FULL_STATUS = 3

cdef struct Order:              # one PERSISTENT RESERVE OUT while it is worked out
    Reservations* reservations
    const Nexus* nexus
    int32_t own                 # the sender's registration in both states, or -1
    uint8_t action
    uint8_t scope
    uint8_t type
    uint64_t key                # RESERVATION KEY
    uint64_t action_key         # SERVICE ACTION RESERVATION KEY
    uint8_t flags               # byte 20
    const uint8_t* parameters
    uint32_t parameter_bytes
    uint32_t sense
    bint conflict


# ---- life ------------------------------------------------------------------------------------------------------------

cdef int reservations_init(Reservations* reservations, NexusTable* nexuses, bint durable) noexcept nogil:
    memset(reservations, 0, sizeof(Reservations))
    reservations.nexuses = nexuses
    reservations.durable = durable
    reservations.state = <ReservationState*>calloc(1, sizeof(ReservationState))
    reservations.next_state = <ReservationState*>calloc(1, sizeof(ReservationState))
    reservations.effects = <ReservationEffect*>calloc(REGISTRANTS_MAX, sizeof(ReservationEffect))
    if reservations.state == NULL or reservations.next_state == NULL or reservations.effects == NULL:
        reservations_free(reservations)
        return E_NOMEM
    reservations.state.holder = HOLDER_NONE
    return OK


cdef void reservations_free(Reservations* reservations) noexcept nogil:
    free(reservations.state)
    free(reservations.next_state)
    free(reservations.effects)
    reservations.state = NULL
    reservations.next_state = NULL
    reservations.effects = NULL


cdef void renew_entry(Reservations* reservations, NexusEntry* entry) noexcept nogil:
    cdef int32_t index = registrant_of(reservations.state, entry.nexus)
    entry.standing = 0
    if index >= 0:
        entry.standing = STANDING_REGISTERED
        if is_holder(reservations.state, index):
            entry.standing |= STANDING_HOLDER


cdef inline void renew_restricting(Reservations* reservations) noexcept nogil:
    reservations.restricting = reservations.state.type != 0 or reservations.reserver != NULL


cdef void renew(Reservations* reservations) noexcept nogil:
    cdef NexusEntry* entry = reservations.nexuses.entries
    while entry != NULL:
        renew_entry(reservations, entry)
        entry = entry.next
    renew_restricting(reservations)


cdef void reservations_event(Reservations* reservations, const Nexus* nexus, int event) noexcept nogil:
    cdef NexusEntry* entry
    if event == NEXUS_LOGIN:
        entry = nexus_find(reservations.nexuses, nexus)
        if entry != NULL:
            renew_entry(reservations, entry)
    elif event == NEXUS_LUN_RESET or event == NEXUS_TARGET_RESET or \
            (event == NEXUS_LOGOUT and reservations.reserver == nexus):
        reservations.reserver = NULL
        renew_restricting(reservations)


# ---- admit -----------------------------------------------------------------------------------------------------------

cdef bint right_conflicts(Reservations* reservations, const void* nexus, uint8_t right) noexcept nogil:
    cdef uint8_t kind = reservations.state.type
    cdef NexusEntry* entry
    cdef NexusEntry beyond
    if right == RIGHT_ALWAYS or right == RIGHT_OWN or right == RIGHT_BY_CDB:
        return False
    if reservations.reserver != NULL:
        return reservations.reserver != nexus
    if kind == 0 or right == RIGHT_ALWAYS_PERSISTENT or (right == RIGHT_READ and type_write_exclusive(kind)):
        return False
    entry = nexus_find(reservations.nexuses, nexus)
    if entry == NULL:                                       # beyond the bound of the table
        beyond.nexus = <const Nexus*>nexus
        renew_entry(reservations, &beyond)
        entry = &beyond
    return entry.standing & (STANDING_REGISTERED if type_registrants(kind) else STANDING_HOLDER) == 0


cdef bint reservations_conflict(Reservations* reservations, const void* nexus,
                                const ScsiCommand* command) noexcept nogil:
    return reservations.restricting and right_conflicts(reservations, nexus, right_of(command))


cdef bint reservations_conflict_cdb(Reservations* reservations, const void* nexus, const uint8_t* cdb) noexcept nogil:
    return reservations.restricting and right_conflicts(reservations, nexus, right_by_cdb(cdb))


cdef uint32_t reservations_admit(Reservations* reservations, const void* nexus, const ScsiCommand* command,
                                 uint8_t* scsi_status) noexcept nogil:
    cdef uint32_t sense
    if reservations.nexuses.pending != 0:
        sense = attention_due(reservations.nexuses, nexus, command)
        if sense != SENSE_NONE:
            scsi_status[0] = STATUS_CHECK_CONDITION
            return sense
    if reservations_conflict(reservations, nexus, command):
        scsi_status[0] = STATUS_RESERVATION_CONFLICT
    return SENSE_NONE


# ---- RESERVE and RELEASE (SPC-2 7.21, 7.17; exceptions of SPC-4 5.13.3, CRH) -----------------------------------------

cdef void reserve_or_release(Reservations* reservations, const Nexus* nexus, const uint8_t* cdb,
                             ReservationAnswer* answer) noexcept nogil:
    cdef bint releases = cdb[0] == OPCODE_RELEASE_6 or cdb[0] == OPCODE_RELEASE_10
    cdef int32_t index = registrant_of(reservations.state, nexus)
    if cdb[1] & 0x11 or (cdb[0] >= OPCODE_RESERVE_10 and cdb[1] & 0x02):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB           # third parties, extents and long IDs are not offered
    elif reservations.state.count > 0:
        # A persistent holder is told that all is well, and nothing changes; for anyone else both ways exclude each other.
        if not is_holder(reservations.state, index) and not (index >= 0 and type_registrants(reservations.state.type)):
            answer.scsi_status = STATUS_RESERVATION_CONFLICT
    elif releases:
        if reservations.reserver == nexus:
            reservations.reserver = NULL
    elif reservations.reserver == NULL or reservations.reserver == nexus:
        reservations.reserver = nexus
    else:
        answer.scsi_status = STATUS_RESERVATION_CONFLICT
    renew_restricting(reservations)


# ---- PERSISTENT RESERVE IN -------------------------------------------------------------------------------------------

cdef void persistent_in(Reservations* reservations, const ScsiCommand* command, ReservationAnswer* answer) noexcept nogil:
    cdef const ReservationState* state = reservations.state
    if command.service_action == IN_READ_KEYS:
        answer.data_bytes = put_keys(state, answer.data)
    elif command.service_action == IN_READ_RESERVATION:
        answer.data_bytes = put_reservation(state, answer.data)
    elif command.service_action == IN_REPORT_CAPABILITIES:
        answer.data_bytes = put_capabilities(reservations.durable, state.aptpl, answer.data)
    elif command.service_action == IN_READ_FULL_STATUS:
        answer.data_bytes = put_full_status(state, answer.data)
    else:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
    invariant(answer.data_bytes <= RESERVATION_ANSWER_BYTES, b"an answer longer than its room")
    if answer.data_bytes > command.length_bytes:
        answer.data_bytes = command.length_bytes


# ---- PERSISTENT RESERVE OUT: registering -----------------------------------------------------------------------------

cdef void attend_others(Order* order, uint32_t sense) noexcept nogil:
    # Every registrant but the sender that is not told something stronger.
    cdef ReservationEffect* effects = order.reservations.effects
    cdef int32_t i
    for i in range(<int32_t>order.reservations.state.count):
        if i != order.own and effects[i].attention == 0:
            effects[i].attention = sense


cdef void unregister(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    if state.holder == order.own and type_registrants(state.type):
        attend_others(order, SENSE_RESERVATIONS_RELEASED)
    registrant_remove(order.reservations.next_state, order.own)


cdef bint register_port(Order* order, const char* initiator_name, const uint8_t* isid) noexcept nogil:
    cdef ReservationState* following = order.reservations.next_state
    cdef int32_t index = registrant_add(following, initiator_name, isid, order.action_key)
    if index < 0:
        order.sense = SENSE_REGISTRATIONS_FULL
        return False
    following.registrants[index].all_ports = (order.flags & FLAG_ALL_TG_PT) != 0
    return True


cdef bint register_device(Order* order, const TransportId* identity) noexcept nogil:
    # Format 00b names an initiator device: all its ports that this device knows.
    cdef NexusEntry* entry = order.reservations.nexuses.entries
    while entry != NULL:
        if names_equal(entry.nexus.initiator_name, identity.initiator_name) and \
                registrant_of(order.reservations.next_state, entry.nexus) < 0 and \
                not register_port(order, entry.nexus.initiator_name, entry.nexus.isid):
            return False
        entry = entry.next
    return True


cdef void register_listed(Order* order) noexcept nogil:
    # SPEC_I_PT: all of the listed ports or, when one cannot be, none (the copy is dropped).
    cdef uint32_t at = PARAMETERS_BYTES + 4, length
    cdef TransportId identity
    while at < order.parameter_bytes and order.sense == 0:
        length = get_transport_id(order.parameters + at, order.parameter_bytes - at, &identity)
        if length == 0:
            order.sense = SENSE_INVALID_FIELD_IN_PARAMETERS
        elif not identity.has_isid:
            register_device(order, &identity)
        elif registrant_find(order.reservations.next_state, identity.initiator_name, identity.isid) >= 0:
            order.sense = SENSE_INVALID_FIELD_IN_PARAMETERS
        else:
            register_port(order, identity.initiator_name, identity.isid)
        at += length


cdef void order_register(Order* order) noexcept nogil:
    cdef ReservationState* following = order.reservations.next_state
    if order.action == OUT_REGISTER and order.key != (following.registrants[order.own].key if order.own >= 0 else 0):
        order.conflict = True
    elif order.flags & FLAG_APTPL and not order.reservations.durable:
        order.sense = SENSE_INVALID_FIELD_IN_PARAMETERS
    elif order.own >= 0 and order.flags & FLAG_SPEC_I_PT:
        order.sense = SENSE_INVALID_FIELD_IN_CDB
    elif order.own >= 0 and order.action_key == 0:
        unregister(order)
    elif order.own >= 0:
        following.registrants[order.own].key = order.action_key
        following.registrants[order.own].all_ports = (order.flags & FLAG_ALL_TG_PT) != 0
    elif order.action_key != 0 and register_port(order, order.nexus.initiator_name, order.nexus.isid) and \
            order.flags & FLAG_SPEC_I_PT:
        register_listed(order)
    if order.own >= 0 or order.action_key != 0:             # else: nothing was to be done
        following.aptpl = (order.flags & FLAG_APTPL) != 0


cdef void order_move(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    cdef ReservationState* following = order.reservations.next_state
    cdef uint8_t flags = order.parameters[17]
    cdef TransportId identity
    cdef int32_t to
    if state.type == 0:
        order.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if state.holder != order.own:                           # of all registrants: nothing can be moved
        order.conflict = True
        return
    if order.action_key == 0 or get_be16(order.parameters + 18) != TARGET_PORT or \
            (flags & FLAG_MOVE_APTPL and not order.reservations.durable) or \
            get_transport_id(order.parameters + PARAMETERS_BYTES, order.parameter_bytes - PARAMETERS_BYTES,
                             &identity) != order.parameter_bytes - PARAMETERS_BYTES or not identity.has_isid:
        order.sense = SENSE_INVALID_FIELD_IN_PARAMETERS
        return
    to = registrant_find(following, identity.initiator_name, identity.isid)
    if to == order.own:
        order.sense = SENSE_INVALID_FIELD_IN_PARAMETERS
        return
    if to < 0:
        to = registrant_add(following, identity.initiator_name, identity.isid, order.action_key)
    if to < 0:
        order.sense = SENSE_REGISTRATIONS_FULL
        return
    following.registrants[to].key = order.action_key
    following.holder = to
    following.aptpl = (flags & FLAG_MOVE_APTPL) != 0
    if flags & FLAG_MOVE_UNREG:
        registrant_remove(following, order.own)


# ---- PERSISTENT RESERVE OUT: reserving -------------------------------------------------------------------------------

cdef void hold(Order* order, int32_t index) noexcept nogil:
    order.reservations.next_state.type = order.type
    order.reservations.next_state.holder = HOLDER_ALL if type_all(order.type) else index


cdef void order_reserve(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    if order.scope != 0 or not type_valid(order.type):
        order.sense = SENSE_INVALID_FIELD_IN_CDB
    elif state.type == 0:
        hold(order, order.own)
    elif not is_holder(state, order.own) or state.type != order.type:
        order.conflict = True


cdef void order_release(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    if not is_holder(state, order.own):
        return
    if order.scope != 0 or order.type != state.type:
        order.sense = SENSE_INVALID_RELEASE
        return
    if type_registrants(state.type):
        attend_others(order, SENSE_RESERVATIONS_RELEASED)
    order.reservations.next_state.type = 0
    order.reservations.next_state.holder = HOLDER_NONE


cdef void order_clear(Order* order) noexcept nogil:
    cdef ReservationState* following = order.reservations.next_state
    attend_others(order, SENSE_RESERVATIONS_PREEMPTED)
    while following.count > 0:
        registrant_remove(following, <int32_t>following.count - 1)


# ---- PERSISTENT RESERVE OUT: preempting (SPC-4 5.13.11.4) ------------------------------------------------------------

cdef void drop(Order* order, int32_t index) noexcept nogil:
    cdef ReservationEffect* effect = &order.reservations.effects[index]
    effect.dropped = True
    effect.aborted = order.action == OUT_PREEMPT_AND_ABORT
    if index != order.own:
        effect.attention = SENSE_REGISTRATIONS_PREEMPTED


cdef void remove_dropped(Order* order) noexcept nogil:
    # From the last to the first, so that the indexes of those before stay.
    cdef int32_t i
    for i in range(<int32_t>order.reservations.state.count - 1, -1, -1):
        if order.reservations.effects[i].dropped:
            registrant_remove(order.reservations.next_state, i)


cdef void preempt_reservation(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    cdef int32_t i
    if order.scope != 0 or not type_valid(order.type):
        order.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    for i in range(<int32_t>state.count):
        if i != order.own and (order.action_key == 0 or state.registrants[i].key == order.action_key):
            drop(order, i)
    if order.type != state.type:
        attend_others(order, SENSE_RESERVATIONS_RELEASED)
    remove_dropped(order)
    hold(order, registrant_of(order.reservations.next_state, order.nexus))


cdef void preempt_registrations(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    cdef bint found = False
    cdef int32_t i
    for i in range(<int32_t>state.count):
        if state.registrants[i].key == order.action_key:
            drop(order, i)
            found = True
    if not found:
        order.conflict = True
        return
    remove_dropped(order)


cdef void order_preempt(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    cdef bint of_holder = False
    if state.holder >= 0:
        of_holder = state.registrants[state.holder].key == order.action_key
    elif state.holder == HOLDER_ALL:
        of_holder = order.action_key == 0
    if of_holder:
        preempt_reservation(order)
    elif order.action_key == 0:
        order.sense = SENSE_INVALID_FIELD_IN_PARAMETERS
    else:
        preempt_registrations(order)


# ---- PERSISTENT RESERVE OUT: from parameter list to answer -----------------------------------------------------------

cdef uint32_t check_list(const ScsiCommand* command, const uint8_t* parameters, uint32_t parameter_bytes) noexcept nogil:
    # SPC-4 6.16.2: the length follows from service action and SPEC_I_PT.
    cdef uint32_t length = command.length_bytes
    if command.service_action > OUT_REGISTER_AND_MOVE:
        return SENSE_INVALID_FIELD_IN_CDB
    if length < PARAMETERS_BYTES or parameter_bytes < length:
        return SENSE_PARAMETER_LIST_LENGTH
    if command.service_action == OUT_REGISTER_AND_MOVE:
        if length < PARAMETERS_BYTES + TRANSPORT_ID_BYTES_MIN or get_be32(parameters + 20) != length - PARAMETERS_BYTES:
            return SENSE_PARAMETER_LIST_LENGTH
    elif not parameters[20] & FLAG_SPEC_I_PT:
        return 0 if length == PARAMETERS_BYTES else SENSE_PARAMETER_LIST_LENGTH
    elif command.service_action != OUT_REGISTER:
        return SENSE_INVALID_FIELD_IN_PARAMETERS
    elif length < PARAMETERS_BYTES + 4 or get_be32(parameters + PARAMETERS_BYTES) != length - PARAMETERS_BYTES - 4:
        return SENSE_PARAMETER_LIST_LENGTH
    return 0


cdef void run_order(Order* order) noexcept nogil:
    cdef ReservationState* state = order.reservations.state
    if order.action == OUT_REGISTER or order.action == OUT_REGISTER_AND_IGNORE:
        order_register(order)
    elif order.own < 0 or state.registrants[order.own].key != order.key:
        order.conflict = True
    elif order.action == OUT_RESERVE:
        order_reserve(order)
    elif order.action == OUT_RELEASE:
        order_release(order)
    elif order.action == OUT_CLEAR:
        order_clear(order)
    elif order.action == OUT_REGISTER_AND_MOVE:
        order_move(order)
    else:
        order_preempt(order)


cdef bint must_be_stored(const Reservations* reservations) noexcept nogil:
    # Whether what is to outlive power has changed. The generation is not: it begins at 0 with every start.
    cdef const ReservationState* old = reservations.state
    cdef const ReservationState* new = reservations.next_state
    if not old.aptpl and not new.aptpl:
        return False
    return old.aptpl != new.aptpl or old.type != new.type or old.holder != new.holder or old.count != new.count or \
        memcmp(old.registrants, new.registrants, old.count * sizeof(Registrant)) != 0


cdef int persistent_out(Reservations* reservations, const Nexus* nexus, const ScsiCommand* command, const uint8_t* cdb,
                        const uint8_t* parameters, uint32_t parameter_bytes, ReservationAnswer* answer) noexcept nogil:
    cdef Order order
    answer.sense = check_list(command, parameters, parameter_bytes)
    if answer.sense != 0:
        return OK
    memset(&order, 0, sizeof(Order))
    memset(reservations.effects, 0, REGISTRANTS_MAX * sizeof(ReservationEffect))
    memcpy(reservations.next_state, reservations.state, sizeof(ReservationState))
    order.reservations = reservations
    order.nexus = nexus
    order.own = registrant_of(reservations.state, nexus)
    order.action = command.service_action
    order.scope = cdb[2] >> 4
    order.type = cdb[2] & 0x0F
    order.key = get_be64(parameters)
    order.action_key = get_be64(parameters + 8)
    order.flags = parameters[20] if order.action != OUT_REGISTER_AND_MOVE else 0
    order.parameters = parameters
    order.parameter_bytes = command.length_bytes
    run_order(&order)
    if order.conflict:
        answer.scsi_status = STATUS_RESERVATION_CONFLICT
    answer.sense = order.sense
    if order.conflict or order.sense != 0:
        return OK
    if order.action != OUT_RESERVE and order.action != OUT_RELEASE:
        reservations.next_state.generation += 1
    reservations.busy = True
    if must_be_stored(reservations):
        return PENDING
    answer.aborts = reservations_commit(reservations)
    return OK


cdef bint reservations_commit(Reservations* reservations) noexcept nogil:
    cdef NexusEntry* entry = reservations.nexuses.entries
    cdef ReservationState* old = reservations.state
    cdef ReservationEffect* effect
    cdef bint aborts = False
    cdef int32_t index
    invariant(reservations.busy, b"no change of reservations is prepared")
    while entry != NULL:
        index = registrant_of(old, entry.nexus)
        if index >= 0:
            effect = &reservations.effects[index]
            if effect.attention != 0:
                attention_add(reservations.nexuses, entry, effect.attention)
            if effect.aborted:
                (<Nexus*>entry.nexus).abort_wanted = True
                aborts = True
        entry = entry.next
    reservations.state = reservations.next_state
    reservations.next_state = old
    reservations.busy = False
    renew(reservations)
    return aborts


cdef void reservations_revert(Reservations* reservations) noexcept nogil:
    invariant(reservations.busy, b"no change of reservations is prepared")
    reservations.busy = False


# ---- the command's way in --------------------------------------------------------------------------------------------

cdef bint reservations_own(const ScsiCommand* command) noexcept nogil:
    return right_of(command) == RIGHT_OWN


cdef int reservations_command(Reservations* reservations, const Nexus* nexus, const ScsiCommand* command,
                              const uint8_t* cdb, const uint8_t* parameters, uint32_t parameter_bytes,
                              ReservationAnswer* answer) noexcept nogil:
    cdef bint persistent = command.opcode == OPCODE_PERSISTENT_IN or command.opcode == OPCODE_PERSISTENT_OUT
    invariant(not reservations.busy or command.opcode == OPCODE_PERSISTENT_IN, b"a change while another is prepared")
    answer.data_bytes = 0
    answer.sense = 0
    answer.scsi_status = STATUS_GOOD
    answer.aborts = False
    if not persistent:
        reserve_or_release(reservations, nexus, cdb, answer)
    elif reservations.reserver != NULL:
        answer.scsi_status = STATUS_RESERVATION_CONFLICT    # SPC-2 5.5.1: whoever asks
    elif command.opcode == OPCODE_PERSISTENT_IN:
        persistent_in(reservations, command, answer)
    else:
        return persistent_out(reservations, nexus, command, cdb, parameters, parameter_bytes, answer)
    return OK


# ---- keeping ---------------------------------------------------------------------------------------------------------

cdef uint32_t reservations_dump(const Reservations* reservations, uint8_t* out) noexcept nogil:
    return state_dump(reservations.next_state if reservations.busy else reservations.state, out)


cdef int reservations_load(Reservations* reservations, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    cdef int status = state_load(reservations.state, data, data_bytes)
    renew(reservations)
    return status


cdef int reservations_load_status(Reservations* reservations, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    cdef int status = state_load_status(reservations.state, data, data_bytes)
    renew(reservations)
    return status
