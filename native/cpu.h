// Which instructions this CPU has.
#pragma once

namespace jaxpool {

bool has_avx2();
bool has_avx512();
bool has_avx512_vnni();
bool has_avx512_bf16();  // and VNNI
bool has_amx_bf16();     // asks Linux for the tiles, as the next does; a virtual machine may have one without the other
bool has_amx_int8();

}  // namespace jaxpool
