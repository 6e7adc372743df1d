#include "encodings.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fedmtl_cpp {
namespace {

float float_of(std::uint32_t bits) {
  float x;
  static_assert(sizeof x == sizeof bits, "a float is a binary32");
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <typename Unsigned>
void store(char* at, Unsigned bits) {
  for (std::size_t i = 0; i < sizeof bits; ++i) {
    at[i] = static_cast<char>(bits >> 8 * i & 0xff);
  }
}

void expect_bytes(const std::string& data, std::uint64_t expected) {
  if (data.size() != expected) {
    throw Malformed(std::to_string(data.size()) + " encoded bytes, expected " + std::to_string(expected));
  }
}

void expect_finite(float x) {
  if (!std::isfinite(x)) {
    throw Malformed("an element is NaN or infinite");
  }
}

std::vector<float> decode_halves(const Layout& layout, const std::string& data, float (*widen)(std::uint16_t)) {
  expect_bytes(data, 2 * layout.elements);
  std::vector<float> elements(layout.elements);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    elements[i] = widen(load16(data.data() + 2 * i));
    expect_finite(elements[i]);
  }
  return elements;
}

std::vector<float> decode_int8(const Layout& layout, const std::string& data) {
  // The largest scale s for which 127 * s is finite.
  const float max_scale = std::ldexp(8454659.0f, 98);
  std::uint64_t num_rows = 0;
  for (const Tensor& tensor : layout.tensors) {
    num_rows += tensor.rows();
  }
  expect_bytes(data, 4 * num_rows + layout.elements);
  const char* scales = data.data();
  const char* bytes = scales + 4 * num_rows;
  std::vector<float> elements;
  elements.reserve(layout.elements);
  for (const Tensor& tensor : layout.tensors) {
    for (std::uint64_t row = 0; row < tensor.rows(); ++row, scales += 4) {
      const float scale = load_float(scales);
      if (!(scale >= 0 && scale <= max_scale)) {
        throw Malformed("a scale is out of range");
      }
      for (std::uint64_t column = 0; column < tensor.columns(); ++column) {
        const auto q = static_cast<signed char>(*bytes++);
        if (q == -128) {
          throw Malformed("an element is -128, expected -127 to 127");
        }
        elements.push_back(scale * static_cast<float>(q));
      }
    }
  }
  return elements;
}

std::vector<float> decode_topk(const Layout& layout, const std::string& data) {
  const std::uint64_t kept = data.size() / 8;
  if (data.size() % 8 != 0 || kept > (layout.elements + 1) / 2) {
    throw Malformed(std::to_string(data.size()) + " encoded bytes, expected a multiple of 8, at most " +
                    std::to_string((layout.elements + 1) / 2 * 8));
  }
  std::vector<float> elements(layout.elements);
  std::uint64_t least = 0;
  for (std::uint64_t j = 0; j < kept; ++j) {
    const std::uint64_t index = load32(data.data() + 4 * j);
    if (index < least || index >= layout.elements) {
      throw Malformed("index " + std::to_string(index) + " of " + std::to_string(layout.elements) +
                      " elements, expected at least " + std::to_string(least));
    }
    least = index + 1;
    elements[index] = load_float(data.data() + 4 * (kept + j));
    expect_finite(elements[index]);
  }
  return elements;
}

void store_element(char* at, pb::ElementType dtype, float x) {
  switch (dtype) {
    case pb::ELEMENT_TYPE_FLOAT16:
      return store(at, to_float16(x));
    case pb::ELEMENT_TYPE_BFLOAT16:
      return store(at, to_bfloat16(x));
    case pb::ELEMENT_TYPE_FLOAT64: {
      const double wide = x;
      std::uint64_t bits;
      std::memcpy(&bits, &wide, sizeof bits);
      return store(at, bits);
    }
    default:  // the layout has no other dtype
      return store_float(at, x);
  }
}

// Writes elements to a component's bytes, each element in its tensor's dtype. Padding is 0.
std::string store_all(const Layout& layout, const std::vector<float>& elements) {
  std::string data(layout.num_bytes, '\0');
  const float* next = elements.data();
  for (const Tensor& tensor : layout.tensors) {
    char* at = data.data() + tensor.offset;
    for (std::uint64_t i = 0; i < tensor.elements; ++i, at += element_bytes(tensor.dtype)) {
      store_element(at, tensor.dtype, *next++);
    }
  }
  return data;
}

}  // namespace

std::uint16_t load16(const char* at) {
  return static_cast<std::uint16_t>(static_cast<unsigned char>(at[0]) | static_cast<unsigned char>(at[1]) << 8);
}

std::uint32_t load32(const char* at) { return load16(at) | std::uint32_t{load16(at + 2)} << 16; }

float load_float(const char* at) { return float_of(load32(at)); }

void store_float(char* at, float x) { store(at, bits_of(x)); }

std::string decode(const Layout& layout, pb::Encoding encoding, const std::string& data) {
  switch (encoding) {
    case pb::ENCODING_UNSPECIFIED:
    case pb::ENCODING_FLOAT32:
      expect_bytes(data, layout.num_bytes);
      return data;
    case pb::ENCODING_FLOAT16:
      return store_all(layout, decode_halves(layout, data, from_float16));
    case pb::ENCODING_BFLOAT16:
      return store_all(layout, decode_halves(layout, data, from_bfloat16));
    case pb::ENCODING_INT8:
      return store_all(layout, decode_int8(layout, data));
    case pb::ENCODING_TOPK:
      return store_all(layout, decode_topk(layout, data));
    default:
      throw Malformed("unknown encoding " + std::to_string(encoding));
  }
}

float from_bfloat16(std::uint16_t bits) { return float_of(std::uint32_t{bits} << 16); }

float from_float16(std::uint16_t bits) {
  const std::uint32_t exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  const std::uint32_t sign = std::uint32_t{bits} << 16 & 0x80000000u;
  if (exponent == 0) {  // a denormal: a multiple of 2^-24
    return float_of(sign | bits_of(std::ldexp(static_cast<float>(mantissa), -24)));
  }
  const std::uint32_t wide = exponent == 0x1f ? 0xff : exponent + 127 - 15;  // 0x1f: infinity or NaN
  return float_of(sign | wide << 23 | mantissa << 13);
}

std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
  const std::uint32_t rounded = (magnitude + 0x7fff + (magnitude >> 16 & 1)) >> 16;
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000) | std::min(rounded, 0x7f7fu));
}

std::uint16_t to_float16(float x) {
  const float magnitude = std::fabs(x);
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // the magnitude is below 2^exponent, and at least half of that
  if (exponent < -13 || magnitude == 0) {
    exponent = -13;  // denormals have the spacing of the smallest normal numbers
  }
  const auto steps = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  // Normal numbers have 2^10 to 2^11 steps; 2^10 steps add one to the exponent.
  const std::uint32_t rounded = (static_cast<std::uint32_t>(exponent + 13) << 10) + steps;
  return static_cast<std::uint16_t>((std::signbit(x) ? 0x8000 : 0) | std::min(rounded, 0x7bffu));
}

}  // namespace fedmtl_cpp
