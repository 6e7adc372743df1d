// One attempt at a download, and one at an upload.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fedmtl/v1/federation.grpc.pb.h"
#include "retry.h"
#include "wire.h"

namespace fedmtl_cpp {

// How to reach the server.
struct Connection {
  std::string address;
  // Goes with every call, where it isn't empty.
  std::string token;
  std::unique_ptr<pb::FederatedMtlService::Stub> stub;

  void prepare(grpc::ClientContext& context) const;
};

// A channel in the clear. For TLS, give grpc::SslCredentials(...) instead of InsecureChannelCredentials().
Connection connect(const std::string& address, const std::string& token);

struct Slice {
  pb::SliceHeader header;
  std::vector<Component> components;
};

// Gets a slice, checks it, and goes on with what an attempt before has left in `parts`. Throws CallFailed, Damaged or
// Malformed.
Slice download(const Connection& connection, Interruption& interruption, pb::GetSliceRequest request,
               Assembler& parts);

// Has an update's components begin where the bytes end that the server has of it. Throws CallFailed or Malformed.
void resume(const Connection& connection, Interruption& interruption, pb::UpdateHeader& header);

// Sends an update, of each component what follows its start_offset. An update that is sent again with the same update_id
// counts once. Throws CallFailed.
pb::PushUpdateResponse upload(const Connection& connection, Interruption& interruption, const pb::UpdateHeader& header,
                              const std::vector<Component>& components);

}  // namespace fedmtl_cpp
