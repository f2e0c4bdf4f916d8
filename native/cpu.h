// Which instructions this CPU has.
#pragma once

namespace jaxpool {

bool has_avx2();
bool has_avx512();
bool has_avx512_vnni();
bool has_avx512_bf16();  // and VNNI
bool has_amx();          // asks Linux for the tiles

}  // namespace jaxpool
