#include "cpu.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"

namespace jaxpool {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

namespace {

// Linux keeps a process from the tiles until it asks for them.
bool has_tiles() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool has =
      has_avx512_bf16() && __builtin_cpu_supports("amx-tile") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return has;
}

}  // namespace

bool has_amx_bf16() { return has_tiles() && __builtin_cpu_supports("amx-bf16"); }

bool has_amx_int8() { return has_tiles() && __builtin_cpu_supports("amx-int8"); }

char* workspace(size_t bytes) {
  static thread_local std::unique_ptr<char, decltype(&std::free)> memory(nullptr, std::free);
  static thread_local size_t size = 0;
  if (bytes > size) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    size = 0;
    memory.reset(static_cast<char*>(std::aligned_alloc(64, rounded)));
    if (!memory) throw std::bad_alloc();
    size = rounded;
  }
  return memory.get();
}

}  // namespace jaxpool
