#include "vectors.h"

#include <google/protobuf/util/message_differencer.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "encodings.h"
#include "wire.h"

namespace fedmtl_cpp {
namespace {

using nlohmann::json;

std::string from_hex(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    out += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  }
  return out;
}

void expect(const std::string& what, const std::string& got, const std::string& expected) {
  if (got != expected) {
    throw std::runtime_error(what + " is " + got + ", expected " + expected);
  }
}

json read_cases(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error(path + ": can't be read");
  }
  try {
    return json::parse(file).at("cases");
  } catch (const json::exception& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
}

void expect_chunk(const pb::Chunk& chunk, const pb::Chunk& expected) {
  if (!google::protobuf::util::MessageDifferencer::Equals(chunk, expected)) {
    throw std::runtime_error("the message says " + chunk.ShortDebugString() + ", expected " +
                             expected.ShortDebugString());
  }
  verify(chunk);
}

// Reads the message as part of a download and as part of an upload, and writes it again.
void check_chunk(const json& c) {
  pb::Chunk expected =
      make_chunk(c.at("scope"), c.at("offset"), from_hex(c.at("data_hex").get<std::string>()));
  expected.set_uncompressed_bytes(c.at("uncompressed_bytes"));
  std::string sum;
  for (int byte = 3; byte >= 0; --byte) {
    sum += static_cast<char>(expected.crc32c() >> 8 * byte & 0xff);
  }
  expect("CRC32C", to_hex(sum), c.at("crc32c"));
  const std::string message = from_hex(c.at("message_hex"));
  pb::GetSliceResponse response;
  pb::PushUpdateRequest request;
  if (!response.ParseFromString(message) || !request.ParseFromString(message)) {
    throw std::runtime_error("the message can't be parsed");
  }
  expect_chunk(response.chunk(), expected);
  expect_chunk(request.chunk(), expected);
  *request.mutable_chunk() = expected;
  expect("what is written", to_hex(request.SerializeAsString()), c.at("message_hex"));
}

std::string upper(std::string text) {
  for (char& letter : text) {
    letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  }
  return text;
}

// Decodes the encoded bytes.
void check_encoding(const json& c) {
  google::protobuf::RepeatedPtrField<pb::TensorSpec> specs;
  for (const json& t : c.at("tensors")) {
    pb::TensorSpec* spec = specs.Add();
    pb::ElementType dtype = pb::ELEMENT_TYPE_UNSPECIFIED;  // which read_layout refuses
    pb::ElementType_Parse("ELEMENT_TYPE_" + upper(t.at("dtype")), &dtype);
    spec->set_name(t.at("name"));
    spec->set_dtype(dtype);
    for (const json& length : t.at("shape")) {
      spec->add_shape(length.get<std::uint64_t>());
    }
    spec->set_offset(t.at("offset"));
  }
  pb::Encoding encoding = pb::ENCODING_UNSPECIFIED;
  if (!pb::Encoding_Parse("ENCODING_" + upper(c.at("encoding")), &encoding)) {
    throw std::runtime_error("unknown encoding " + c.at("encoding").get<std::string>());
  }
  const Layout layout = read_layout("shared", specs);
  expect("what is decoded", to_hex(decode(layout, encoding, from_hex(c.at("encoded_hex")))), c.at("decoded_hex"));
}

std::size_t check_file(const std::string& folder, const std::string& name, void (*check)(const json&)) {
  const json cases = read_cases(folder + "/" + name);
  for (const json& c : cases) {
    try {
      check(c);
    } catch (const std::exception& error) {
      throw std::runtime_error(name + ": " + c.value("name", "(no name)") + ": " + error.what());
    }
  }
  return cases.size();
}

}  // namespace

std::size_t check_vectors(const std::string& folder) {
  return check_file(folder, "chunks.json", check_chunk) + check_file(folder, "encodings.json", check_encoding);
}

}  // namespace fedmtl_cpp
