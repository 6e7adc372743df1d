// One attempt at a download or an upload.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fedmtl/v1/federation.grpc.pb.h"
#include "retry.h"
#include "wire.h"

namespace fedmtl_cpp {

// The address of the server, and the credentials.
struct Connection {
  std::string address;
  // Sent with every call, unless it is empty.
  std::string token;
  std::unique_ptr<pb::FederatedMtlService::Stub> stub;

  void prepare(grpc::ClientContext& context) const;
};

// A channel without TLS. For TLS, use grpc::SslCredentials(...) instead of InsecureChannelCredentials().
Connection connect(const std::string& address, const std::string& token);

struct Slice {
  pb::SliceHeader header;
  std::vector<Component> components;
};

// Gets a slice, checks it, and continues with what an earlier attempt left in `parts`. Throws CallFailed, Damaged or
// Malformed.
Slice download(const Connection& connection, Interruption& interruption, pb::GetSliceRequest request,
               Assembler& parts);

// Sets the start_offset of an update's components to the number of bytes that the server has. Throws CallFailed or
// Malformed.
void resume(const Connection& connection, Interruption& interruption, pb::UpdateHeader& header);

// Sends an update: the bytes of each component from its start_offset. An update that is sent again with the same
// update_id counts once. Throws CallFailed.
pb::PushUpdateResponse upload(const Connection& connection, Interruption& interruption, const pb::UpdateHeader& header,
                              const std::vector<Component>& components);

}  // namespace fedmtl_cpp
