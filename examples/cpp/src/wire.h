// The bytes of a component, without a socket: its table of contents, its chunks and their checksums.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "fedmtl/v1/federation.pb.h"

namespace pb = fedmtl::v1;

namespace fedmtl_cpp {

// The maximum size of a chunk.
constexpr std::uint64_t kMaxChunkBytes = 2u << 20;

// The server has sent something invalid.
struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Bytes were changed in transit, so that the client should ask for them again.
struct Damaged : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One tensor and its place in its component.
struct Tensor {
  std::string name;
  pb::ElementType dtype;
  std::vector<std::uint64_t> shape;
  // The tensor's first byte, from the start of the component.
  std::uint64_t offset;
  // The product of `shape`; 1 for a scalar.
  std::uint64_t elements;

  // The size of the last dimension; 1 for a scalar.
  std::uint64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  // The number of rows along the last dimension.
  std::uint64_t rows() const { return columns() == 0 ? 0 : elements / columns(); }
};

// A component's table of contents.
struct Layout {
  std::string scope;
  std::vector<Tensor> tensors;
  // The end of the last tensor.
  std::uint64_t num_bytes = 0;
  // The number of elements of all tensors together.
  std::uint64_t elements = 0;

  // Whether the component has only float32 numbers, which have no padding between them.
  bool is_float32() const;
};

// A component's decoded bytes with their layout.
struct Component {
  Layout layout;
  std::string data;
};

// The size of an element, or 0 for a type that this client doesn't know.
std::uint64_t element_bytes(pb::ElementType dtype);

// Reads a table of contents, and checks that every tensor is at the place that its alignment requires.
Layout read_layout(const std::string& scope, const google::protobuf::RepeatedPtrField<pb::TensorSpec>& specs);

// Returns a component for an update's header, in the exact encoding and from its first byte.
pb::Component to_proto(const Layout& layout);

// CRC32C (Castagnoli).
std::uint32_t crc32c(const std::string& data);

std::string sha256(const std::string& data);

std::string to_hex(const std::string& data);

pb::Chunk make_chunk(const std::string& scope, std::uint64_t offset, std::string data);

// Checks a chunk's checksum.
void verify(const pb::Chunk& chunk);

// Assembles a slice's chunks from as many streams as necessary.
class Assembler {
 public:
  // Reads a stream's header. Bytes that the stream continues are kept. Memory is allocated for the bytes that arrive, not
  // for the announced size.
  void begin(const pb::SliceHeader& header);

  // What the server need not send again.
  std::vector<pb::HeldComponent> held() const;

  // Checks and stores one chunk, with the checks of docs/wire.md in their order.
  void add(const pb::Chunk& chunk);

  // Decodes the components and checks their digests. The components are in the header's order.
  std::vector<Component> finish();

 private:
  struct Arrival {
    Layout layout;
    pb::Encoding encoding;
    std::string digest;
    // The expected total size; `data` has the bytes that have arrived.
    std::uint64_t encoded_bytes;
    std::string data;

    // Whether the bytes of another arrival are the first bytes of this one.
    bool goes_on(const Arrival& other) const;
  };

  static Arrival read(const pb::Component& component);
  static Arrival* find(std::vector<Arrival>& arrivals, const std::string& scope);

  std::vector<Arrival> arrivals_;
};

}  // namespace fedmtl_cpp
