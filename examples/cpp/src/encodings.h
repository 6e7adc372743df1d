// Decodes encoded bytes: docs/wire.md, "Encodings".
#pragma once

#include <cstdint>
#include <string>

#include "wire.h"

namespace fedmtl_cpp {

// Numbers are little-endian on the wire, whatever the machine.
std::uint16_t load16(const char* at);
std::uint32_t load32(const char* at);
float load_float(const char* at);
void store_float(char* at, float x);

// Converts a component's encoded bytes to the component's own bytes. Throws Malformed for invalid bytes.
std::string decode(const Layout& layout, pb::Encoding encoding, const std::string& data);

float from_float16(std::uint16_t bits);
float from_bfloat16(std::uint16_t bits);

// They round a finite number to nearest, ties to even; a number that is too large becomes the largest one.
std::uint16_t to_float16(float x);
std::uint16_t to_bfloat16(float x);

}  // namespace fedmtl_cpp
