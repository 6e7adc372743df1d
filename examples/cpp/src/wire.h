// The bytes of a component: its table of contents, its chunks and their checksums. No socket here.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "fedmtl/v1/federation.pb.h"

namespace pb = fedmtl::v1;

namespace fedmtl_cpp {

// The most that one chunk carries.
constexpr std::uint64_t kMaxChunkBytes = 2u << 20;

// The server has sent what makes no sense.
struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Bytes were changed on the way. They are worth asking for again.
struct Damaged : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where one tensor lies in its component.
struct Tensor {
  std::string name;
  pb::ElementType dtype;
  std::vector<std::uint64_t> shape;
  // Its first byte, from the start of the component.
  std::uint64_t offset;
  // The product of `shape`; 1 for a scalar.
  std::uint64_t elements;

  // The elements of its last dimension; 1 of a scalar.
  std::uint64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  // How many such rows it has.
  std::uint64_t rows() const { return columns() == 0 ? 0 : elements / columns(); }
};

// A component's table of contents.
struct Layout {
  std::string scope;
  std::vector<Tensor> tensors;
  // The end of the last tensor.
  std::uint64_t num_bytes = 0;
  // Of all tensors together.
  std::uint64_t elements = 0;

  // Whether it is nothing but float32 numbers, which have no padding between them.
  bool is_float32() const;
};

// A component's decoded bytes, with the layout that says what they mean.
struct Component {
  Layout layout;
  std::string data;
};

// The size of an element, or 0 for a type that this client doesn't know.
std::uint64_t element_bytes(pb::ElementType dtype);

// Reads a table of contents, and checks that every tensor lies where the one before it and its alignment put it.
Layout read_layout(const std::string& scope, const google::protobuf::RepeatedPtrField<pb::TensorSpec>& specs);

// Lays a component out as an update's header has it: in the exact encoding, from its first byte on.
pb::Component to_proto(const Layout& layout);

// CRC32C (Castagnoli).
std::uint32_t crc32c(const std::string& data);

std::string sha256(const std::string& data);

std::string to_hex(const std::string& data);

pb::Chunk make_chunk(const std::string& scope, std::uint64_t offset, std::string data);

// Compares a chunk with its checksum.
void verify(const pb::Chunk& chunk);

// Puts a slice's chunks together, over however many streams.
class Assembler {
 public:
  // Reads what a stream's header announces. What it goes on with stays; memory is taken for what arrives, not for what
  // is announced.
  void begin(const pb::SliceHeader& header);

  // What needs not be sent again.
  std::vector<pb::HeldComponent> held() const;

  // Takes one chunk. The checks are those of docs/wire.md, in its order.
  void add(const pb::Chunk& chunk);

  // Decodes what has arrived, and checks the digests. The components are in the header's order.
  std::vector<Component> finish();

 private:
  struct Arrival {
    Layout layout;
    pb::Encoding encoding;
    std::string digest;
    // Expected in all; `data` has those that are here.
    std::uint64_t encoded_bytes;
    std::string data;

    // Whether the bytes of another arrival are the first of this one's.
    bool goes_on(const Arrival& other) const;
  };

  static Arrival read(const pb::Component& component);
  static Arrival* find(std::vector<Arrival>& arrivals, const std::string& scope);

  std::vector<Arrival> arrivals_;
};

}  // namespace fedmtl_cpp
