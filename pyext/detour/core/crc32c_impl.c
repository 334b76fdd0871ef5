/* CRC32C kernels.
 *
 * Portable: slicing by 8, eight tables of 256 words (8 KiB), about 1 to 2 bytes a cycle.
 *
 * x86-64: the CRC32 instruction takes 8 bytes a cycle but answers 3 cycles later, so one stream leaves two thirds of
 * it idle. Three neighbouring lanes are summed at a time, and joined at the end: a lane's sum is moved over the n bytes
 * that follow it by multiplying with x^(8n) modulo P. PCLMULQDQ does the multiplication and the CRC32 instruction the
 * reduction. In bit-reflected form the 64-bit product of two 32-bit values counts as multiplied by x, and the reduction
 * of 64 bits multiplies by x^32, hence the constant for n bytes is x^(8n - 33). The constants are computed at set-up,
 * and the kernel is compared with the portable one before it is offered.
 *
 * aarch64: the CRC extension, one stream, where the compiler is told that it is there. */
#include "crc32c_impl.h"

#include <string.h>

#define POLYNOMIAL_REFLECTED 0x82F63B78u
#define COPY_PIECE_BYTES 4096u          /* copied, then summed while it is in the first-level cache */

static uint32_t tables[8][256];
static uint32_t (*chosen)(uint32_t crc, const void *data, size_t length) = detour_crc32c_portable;

static uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* ---- portable ---- */

static void fill_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (POLYNOMIAL_REFLECTED & (0u - (crc & 1u)));
        tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][before & 0xFFu];
        }
}

uint32_t detour_crc32c_portable(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *at = data;
    crc = ~crc;
    while (length >= 8) {
        uint32_t low = crc ^ ((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
        crc = tables[7][low & 0xFFu] ^ tables[6][(low >> 8) & 0xFFu] ^ tables[5][(low >> 16) & 0xFFu]
            ^ tables[4][low >> 24] ^ tables[3][at[4]] ^ tables[2][at[5]] ^ tables[1][at[6]] ^ tables[0][at[7]];
        at += 8;
        length -= 8;
    }
    while (length > 0) {
        crc = (crc >> 8) ^ tables[0][(crc ^ *at) & 0xFFu];
        at++;
        length--;
    }
    return ~crc;
}

/* ---- hardware ---- */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HARDWARE_BUILT 1
#define KERNEL_TARGET __attribute__((target("sse4.2,pclmul")))

#define LANE_LONG_BYTES 1360u           /* three lanes: 4080 bytes, so that one 4 KiB block is one turn */
#define LANE_SHORT_BYTES 160u           /* three lanes: 480 bytes, for one 512-byte sector */

typedef struct {
    uint32_t over_one;                  /* moves a sum over one lane */
    uint32_t over_two;                  /* moves a sum over two lanes */
} lane_constants;

static lane_constants lane_long, lane_short;

static uint32_t power_of_x(uint32_t exponent)
{
    uint32_t power = 0x80000000u;       /* x^0 in reflected form */
    while (exponent-- > 0)
        power = (power >> 1) ^ (POLYNOMIAL_REFLECTED & (0u - (power & 1u)));
    return power;
}

static lane_constants constants_for(uint32_t lane_bytes)
{
    lane_constants constants = {power_of_x(8 * lane_bytes - 33), power_of_x(16 * lane_bytes - 33)};
    return constants;
}

static void setup_hardware(void)
{
    lane_long = constants_for(LANE_LONG_BYTES);
    lane_short = constants_for(LANE_SHORT_BYTES);
}

static int cpu_has_instructions(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

KERNEL_TARGET static inline uint64_t move_over(uint64_t crc, uint32_t constant)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi32_si128((int)constant), 0);
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* Sums three lanes of `lane_bytes` (a multiple of 8) that begin at `at`; takes and answers the inverted sum. */
KERNEL_TARGET static inline uint64_t three_lanes(uint64_t crc, const uint8_t *at, size_t lane_bytes,
                                                 const lane_constants *constants)
{
    uint64_t second = 0, third = 0;
    const uint8_t *end = at + lane_bytes;
    while (at < end) {
        crc = _mm_crc32_u64(crc, load64(at));
        second = _mm_crc32_u64(second, load64(at + lane_bytes));
        third = _mm_crc32_u64(third, load64(at + 2 * lane_bytes));
        at += 8;
    }
    return move_over(crc, constants->over_two) ^ move_over(second, constants->over_one) ^ third;
}

KERNEL_TARGET uint32_t detour_crc32c_hardware(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *at = data;
    uint64_t sum = (uint32_t)~crc;
    while (length >= 3 * LANE_LONG_BYTES) {
        sum = three_lanes(sum, at, LANE_LONG_BYTES, &lane_long);
        at += 3 * LANE_LONG_BYTES;
        length -= 3 * LANE_LONG_BYTES;
    }
    while (length >= 3 * LANE_SHORT_BYTES) {
        sum = three_lanes(sum, at, LANE_SHORT_BYTES, &lane_short);
        at += 3 * LANE_SHORT_BYTES;
        length -= 3 * LANE_SHORT_BYTES;
    }
    while (length >= 8) {
        sum = _mm_crc32_u64(sum, load64(at));
        at += 8;
        length -= 8;
    }
    while (length > 0) {
        sum = _mm_crc32_u8((uint32_t)sum, *at);
        at++;
        length--;
    }
    return ~(uint32_t)sum;
}

#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define HARDWARE_BUILT 1

static void setup_hardware(void) {}

/* The compiler was told that the extension is there; the whole build needs it then. */
static int cpu_has_instructions(void) { return 1; }

uint32_t detour_crc32c_hardware(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *at = data;
    crc = ~crc;
    while (length >= 8) {
        crc = __crc32cd(crc, load64(at));
        at += 8;
        length -= 8;
    }
    while (length > 0) {
        crc = __crc32cb(crc, *at);
        at++;
        length--;
    }
    return ~crc;
}

#else
#define HARDWARE_BUILT 0
#endif

#if HARDWARE_BUILT
static int agrees_with_reference(void)
{
    static const size_t lengths[] = {0, 1, 7, 8, 63, 479, 480, 512, 4079, 4080, 4096, 8191};
    static uint8_t sample[8192];
    uint32_t seed = 1;
    for (size_t i = 0; i < sizeof sample; i++) {
        seed = seed * 1664525u + 1013904223u;
        sample[i] = (uint8_t)(seed >> 24);
    }
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        uint32_t expected = detour_crc32c_portable(seed, sample + 1, lengths[i]);
        if (detour_crc32c_hardware(seed, sample + 1, lengths[i]) != expected)
            return 0;
    }
    return 1;
}

detour_crc32c_support detour_crc32c_hardware_support(void)
{
    if (!cpu_has_instructions())
        return DETOUR_CRC32C_NO_CPU;
    return agrees_with_reference() ? DETOUR_CRC32C_READY : DETOUR_CRC32C_MISMATCH;
}
#else
static void setup_hardware(void) {}

detour_crc32c_support detour_crc32c_hardware_support(void) { return DETOUR_CRC32C_NOT_BUILT; }

uint32_t detour_crc32c_hardware(uint32_t crc, const void *data, size_t length)
{
    return detour_crc32c_portable(crc, data, length);
}
#endif

/* ---- choice ---- */

void detour_crc32c_setup(void)
{
    fill_tables();
    setup_hardware();
}

void detour_crc32c_choose(int hardware)
{
    chosen = hardware ? detour_crc32c_hardware : detour_crc32c_portable;
}

uint32_t detour_crc32c_update(uint32_t crc, const void *data, size_t length)
{
    return chosen(crc, data, length);
}

uint32_t detour_crc32c_copy(uint32_t crc, void *to, const void *source, size_t length)
{
    uint8_t *target = to;
    const uint8_t *from = source;
    while (length > 0) {
        size_t piece = length < COPY_PIECE_BYTES ? length : COPY_PIECE_BYTES;
        memcpy(target, from, piece);
        crc = chosen(crc, target, piece);   /* of what was stored, in case the source changes meanwhile */
        target += piece;
        from += piece;
        length -= piece;
    }
    return crc;
}
