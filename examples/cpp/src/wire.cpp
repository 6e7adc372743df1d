#include "wire.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

#include "encodings.h"

namespace fedmtl_cpp {
namespace {

// Prevents an overflow while the sizes of an invalid table of contents are added.
constexpr std::uint64_t kMaxComponentBytes = std::uint64_t{1} << 40;

// By the low byte of the checksum so far and the next byte, combined; the polynomial is 0x1EDC6F41, reflected.
std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t entry = i;
    for (int bit = 0; bit < 8; ++bit) {
      entry = entry & 1 ? entry >> 1 ^ 0x82f63b78u : entry >> 1;
    }
    table[i] = entry;
  }
  return table;
}

std::uint64_t count_elements(const std::string& scope, const pb::TensorSpec& spec) {
  std::uint64_t elements = 1;
  for (const std::uint64_t length : spec.shape()) {
    if (elements != 0 && length > kMaxComponentBytes / elements) {
      throw Malformed(scope + ": " + spec.name() + " is too large");
    }
    elements *= length;
  }
  return elements;
}

}  // namespace

std::uint64_t element_bytes(pb::ElementType dtype) {
  switch (dtype) {
    case pb::ELEMENT_TYPE_FLOAT16:
    case pb::ELEMENT_TYPE_BFLOAT16:
      return 2;
    case pb::ELEMENT_TYPE_FLOAT32:
      return 4;
    case pb::ELEMENT_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

bool Layout::is_float32() const {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return tensor.dtype == pb::ELEMENT_TYPE_FLOAT32; });
}

Layout read_layout(const std::string& scope, const google::protobuf::RepeatedPtrField<pb::TensorSpec>& specs) {
  Layout layout;
  layout.scope = scope;
  for (const pb::TensorSpec& spec : specs) {
    const std::uint64_t size = element_bytes(spec.dtype());
    if (size == 0) {
      throw Malformed(scope + ": " + spec.name() + " has the unknown element type " + std::to_string(spec.dtype()));
    }
    const std::uint64_t elements = count_elements(scope, spec);
    const std::uint64_t offset = (layout.num_bytes + size - 1) / size * size;
    if (spec.offset() != offset) {
      throw Malformed(scope + ": " + spec.name() + " begins at byte " + std::to_string(spec.offset()) + ", expected " +
                      std::to_string(offset));
    }
    layout.tensors.push_back({spec.name(), spec.dtype(), {spec.shape().begin(), spec.shape().end()}, offset, elements});
    layout.elements += elements;
    layout.num_bytes = offset + elements * size;
    if (layout.num_bytes > kMaxComponentBytes) {
      throw Malformed(scope + ": more than " + std::to_string(kMaxComponentBytes) + " bytes");
    }
  }
  return layout;
}

pb::Component to_proto(const Layout& layout) {
  pb::Component out;
  out.set_scope(layout.scope);
  out.set_num_bytes(layout.num_bytes);
  out.set_encoding(pb::ENCODING_FLOAT32);
  out.set_encoded_bytes(layout.num_bytes);
  for (const Tensor& tensor : layout.tensors) {
    pb::TensorSpec* spec = out.add_tensors();
    spec->set_name(tensor.name);
    spec->set_dtype(tensor.dtype);
    spec->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    spec->set_offset(tensor.offset);
  }
  return out;
}

std::uint32_t crc32c(const std::string& data) {
  static const std::array<std::uint32_t, 256> table = crc_table();
  std::uint32_t sum = 0xffffffffu;
  for (const char byte : data) {
    sum = sum >> 8 ^ table[(sum ^ static_cast<unsigned char>(byte)) & 0xff];
  }
  return sum ^ 0xffffffffu;
}

std::string sha256(const std::string& data) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  if (EVP_Digest(data.data(), data.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) {
    throw std::runtime_error("OpenSSL can't compute SHA-256");
  }
  return {digest.begin(), digest.begin() + size};
}

std::string to_hex(const std::string& data) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (const char byte : data) {
    out += digits[static_cast<unsigned char>(byte) >> 4];
    out += digits[byte & 0xf];
  }
  return out;
}

pb::Chunk make_chunk(const std::string& scope, std::uint64_t offset, std::string data) {
  pb::Chunk chunk;
  chunk.set_scope(scope);
  chunk.set_offset(offset);
  chunk.set_crc32c(crc32c(data));
  chunk.set_data(std::move(data));
  return chunk;
}

void verify(const pb::Chunk& chunk) {
  if (crc32c(chunk.data()) != chunk.crc32c()) {
    throw Damaged(chunk.scope() + " at byte " + std::to_string(chunk.offset()) + ": the chunk contradicts its CRC32C");
  }
}

bool Assembler::Arrival::goes_on(const Arrival& other) const {
  return !digest.empty() && digest == other.digest && encoding == other.encoding &&
         encoded_bytes == other.encoded_bytes;
}

Assembler::Arrival Assembler::read(const pb::Component& component) {
  Layout layout = read_layout(component.scope(), component.tensors());
  if (component.num_bytes() != layout.num_bytes) {
    throw Malformed(layout.scope + ": the header says " + std::to_string(component.num_bytes()) +
                    " bytes, its tensors take " + std::to_string(layout.num_bytes));
  }
  if (!component.base_digest().empty()) {
    throw Malformed(layout.scope + ": the server sends a difference, though none was asked for");
  }
  const bool left_out = component.encoding() == pb::ENCODING_UNSPECIFIED && component.encoded_bytes() == 0;
  const std::uint64_t encoded_bytes = left_out ? component.num_bytes() : component.encoded_bytes();
  return {std::move(layout), component.encoding(), component.digest(), encoded_bytes, {}};
}

Assembler::Arrival* Assembler::find(std::vector<Arrival>& arrivals, const std::string& scope) {
  for (Arrival& arrival : arrivals) {
    if (arrival.layout.scope == scope) {
      return &arrival;
    }
  }
  return nullptr;
}

void Assembler::begin(const pb::SliceHeader& header) {
  std::vector<Arrival> next;
  for (const pb::Component& component : header.components()) {
    Arrival arrival = read(component);
    const std::string& scope = arrival.layout.scope;
    if (find(next, scope) != nullptr) {
      throw Malformed(scope + ": twice in one header");
    }
    if (const std::uint64_t start = component.start_offset(); start > 0) {
      const Arrival* known = find(arrivals_, scope);
      if (known == nullptr || !arrival.goes_on(*known) || start > known->data.size()) {
        throw Malformed(scope + ": the server continues at byte " + std::to_string(start) + ", which is not here");
      }
      arrival.data = known->data.substr(0, start);
    }
    next.push_back(std::move(arrival));
  }
  arrivals_ = std::move(next);
}

std::vector<pb::HeldComponent> Assembler::held() const {
  std::vector<pb::HeldComponent> held;
  for (const Arrival& arrival : arrivals_) {
    if (!arrival.data.empty()) {
      pb::HeldComponent& one = held.emplace_back();
      one.set_scope(arrival.layout.scope);
      one.set_digest(arrival.digest);
      one.set_num_bytes(arrival.data.size());
      one.set_encoding(arrival.encoding);
    }
  }
  return held;
}

void Assembler::add(const pb::Chunk& chunk) {
  Arrival* arrival = find(arrivals_, chunk.scope());
  if (arrival == nullptr) {
    throw Malformed("a chunk of '" + chunk.scope() + "', which the header doesn't have");
  }
  const std::uint64_t here = arrival->data.size();
  const std::uint64_t size = chunk.data().size();
  if (size == 0) {
    throw Malformed(chunk.scope() + ": an empty chunk");
  }
  if (chunk.offset() != here) {
    throw Malformed(chunk.scope() + ": a chunk at byte " + std::to_string(chunk.offset()) + ", expected " +
                    std::to_string(here));
  }
  if (size > arrival->encoded_bytes - here) {
    throw Malformed(chunk.scope() + ": a chunk ends behind the component");
  }
  if (size > kMaxChunkBytes) {
    throw Malformed(chunk.scope() + ": a chunk of " + std::to_string(size) + " bytes");
  }
  if (chunk.uncompressed_bytes() != 0) {
    throw Malformed(chunk.scope() + ": a compressed chunk, though none was asked for");
  }
  verify(chunk);
  arrival->data += chunk.data();
}

std::vector<Component> Assembler::finish() {
  std::vector<Component> components;
  for (Arrival& arrival : arrivals_) {
    const std::string& scope = arrival.layout.scope;
    if (arrival.data.size() != arrival.encoded_bytes) {
      throw Malformed(scope + ": " + std::to_string(arrival.data.size()) + " of " +
                      std::to_string(arrival.encoded_bytes) + " bytes arrived");
    }
    std::string data = decode(arrival.layout, arrival.encoding, arrival.data);
    if (!arrival.digest.empty() && sha256(data) != arrival.digest) {
      arrival.data.clear();  // the data can't be resumed
      throw Damaged(scope + ": the bytes contradict the header's SHA-256");
    }
    components.push_back({arrival.layout, std::move(data)});
  }
  return components;
}

}  // namespace fedmtl_cpp
