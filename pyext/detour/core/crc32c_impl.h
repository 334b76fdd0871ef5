/* CRC32C kernels: a portable one, a hardware one, and the choice between them.
 *
 * All kernels answer the same bits for the same input; the portable one is the reference. The value that goes in and
 * comes out is the finished (inverted) one, so that calls chain. */
#ifndef DETOUR_CRC32C_IMPL_H
#define DETOUR_CRC32C_IMPL_H
#include <stddef.h>
#include <stdint.h>

typedef enum {
    DETOUR_CRC32C_READY = 0,
    DETOUR_CRC32C_NOT_BUILT = 1,    /* the build has no hardware kernel for this architecture */
    DETOUR_CRC32C_NO_CPU = 2,       /* the processor lacks the instructions */
    DETOUR_CRC32C_MISMATCH = 3      /* the kernel disagrees with the reference on this processor */
} detour_crc32c_support;

/* Fills the tables; to be called once, before any other function here. */
void detour_crc32c_setup(void);
/* Whether the hardware kernel can run on this machine, and if not, why. */
detour_crc32c_support detour_crc32c_hardware_support(void);
/* Chooses the kernel of detour_crc32c_update: 1 the hardware kernel (which must be ready), 0 the portable one. */
void detour_crc32c_choose(int hardware);

uint32_t detour_crc32c_portable(uint32_t crc, const void *data, size_t length);
uint32_t detour_crc32c_hardware(uint32_t crc, const void *data, size_t length);
uint32_t detour_crc32c_update(uint32_t crc, const void *data, size_t length);
uint32_t detour_crc32c_copy(uint32_t crc, void *to, const void *source, size_t length);
#endif
