# Answers of a plain disk to commands that touch no medium.
#
# Owns: nothing; the pages and tables belong to disk_vpd, disk_mode, disk_log, disk_medium and disk_opcodes.
# Invariants: what is not in the table of disk_opcodes is refused here; no answer is longer than INFO_BYTES_MAX; nothing
# that comes from a CDB is used as an index unchecked.
# Cost: of no concern; these commands are rare.
from detour.core.disk_identity cimport answer_cut
from detour.core.disk_log cimport disk_log_select, disk_log_sense
from detour.core.disk_medium cimport (disk_defect_data, disk_not_ready, disk_prevent_allow, disk_receive_diagnostic,
                                      disk_send_diagnostic, disk_start_stop)
from detour.core.disk_mode cimport disk_mode_select, disk_mode_sense
from detour.core.disk_opcodes cimport disk_refusal, disk_report_opcodes, disk_report_task_management
from detour.core.disk_vpd cimport disk_inquiry, disk_read_capacity_10, disk_read_capacity_16
from detour.core.scsi cimport *



cdef void disk_request_sense(const DiskView* view, const uint8_t* cdb, uint32_t attention,
                             InfoAnswer* answer) noexcept nogil:
    cdef uint32_t sense = attention if attention != 0 else disk_not_ready(view.state)
    cdef uint32_t length = scsi_sense(answer.data, sense, False, 0)
    if cdb[1] & 0x01:                               # descriptor format
        length = scsi_sense_describe(answer.data, length)
    answer_cut(answer, length, cdb[4])


cdef bint sensing(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                  InfoAnswer* answer) noexcept nogil:
    # What only tells; True: it was one of these.
    cdef uint8_t opcode = command.opcode
    if opcode == 0x12:
        disk_inquiry(view, cdb, answer)
    elif opcode == 0x1A or opcode == 0x5A:
        disk_mode_sense(view, command, cdb, answer)
    elif opcode == 0x03:
        disk_request_sense(view, cdb, SENSE_NONE, answer)
    elif opcode == 0x25:
        disk_read_capacity_10(view, cdb, answer)
    elif opcode == 0x9E and command.service_action == 0x10:
        disk_read_capacity_16(view, command, cdb, answer)
    elif opcode == 0xA3 and command.service_action == 0x0C:
        disk_report_opcodes(view, command, cdb, answer)
    elif opcode == 0xA3 and command.service_action == 0x0D:
        disk_report_task_management(command, cdb, answer)
    elif opcode == 0x4D:
        disk_log_sense(view, command, cdb, answer)
    elif opcode == 0x1C:
        disk_receive_diagnostic(command, cdb, answer)
    elif opcode == 0x37 or opcode == 0xB7:
        disk_defect_data(command, cdb, answer)
    else:
        return False
    return True


cdef void disk_info(const DiskView* view, const NexusTable* nexuses, NexusEntry* nexus, const ScsiCommand* command,
                    const uint8_t* cdb, const uint8_t* parameters, uint32_t parameter_bytes,
                    InfoAnswer* answer) noexcept nogil:
    cdef uint8_t opcode = command.opcode
    answer.data_bytes = 0
    answer.effects = 0
    answer.sense = disk_refusal(view, command)
    if answer.sense != 0 or sensing(view, command, cdb, answer):
        return
    if opcode == 0x15 or opcode == 0x55:
        disk_mode_select(view, cdb, parameters, parameter_bytes, answer)
    elif opcode == 0x4C:
        disk_log_select(view, command, cdb, answer)
    elif opcode == 0x1B:
        disk_start_stop(view, nexuses, cdb, answer)
    elif opcode == 0x1E:
        disk_prevent_allow(view, nexus, cdb, answer)
    elif opcode == 0x1D:
        disk_send_diagnostic(command, cdb, parameters, parameter_bytes, answer)
    # TEST UNIT READY: that it came so far is the answer.
