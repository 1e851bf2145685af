#include "binaries.h"

// The bytes come from FAIRY_BINARIES_FILE, which the build sets. An assembler includes megabytes in no time, where a
// C++ array of them would take minutes.
asm(".pushsection .rodata\n"
    ".balign 64\n"
    ".global fairy_embedded_binaries\n"
    ".hidden fairy_embedded_binaries\n"
    "fairy_embedded_binaries:\n"
    ".incbin \"" FAIRY_BINARIES_FILE
    "\"\n"
    ".popsection\n");

extern "C" __attribute__((visibility("hidden"))) const unsigned char fairy_embedded_binaries[];

namespace fairy {
namespace {

constexpr Binary ROWS[] = {
#include "rows.inc"
};
constexpr Binaries EMBEDDED = {ROWS, sizeof(ROWS) / sizeof(ROWS[0])};

}  // namespace

const Binaries& binaries() noexcept { return EMBEDDED; }

const unsigned char* image(const Binary& binary) noexcept { return fairy_embedded_binaries + binary.offset; }

bool any_binary(int32_t dtype, int32_t head_dim) noexcept {
  for (const Binary& row : ROWS) {
    if (row.dtype == dtype && row.head_dim == head_dim) return true;
  }
  return false;
}

const Binary* pick_binary(int32_t dtype, int32_t head_dim, int32_t major, int32_t minor) noexcept {
  const Binary* best = nullptr;
  for (const Binary& row : ROWS) {
    if (row.dtype != dtype || row.head_dim != head_dim || row.major != major) continue;
    if (row.only_exact ? row.minor != minor : row.minor > minor) continue;
    if (best == nullptr || row.minor > best->minor) best = &row;
  }
  return best;
}

}  // namespace fairy
