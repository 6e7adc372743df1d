#include "transfer.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace fedmtl_cpp {
namespace {

void require_ok(const grpc::Status& status) {
  if (!status.ok()) {
    throw CallFailed(status);
  }
}

// Writes a component's chunks. False if the call is over; its status says why.
bool write_chunks(grpc::ClientWriter<pb::PushUpdateRequest>& writer, const Component& component) {
  for (std::uint64_t offset = 0; offset < component.data.size(); offset += kMaxChunkBytes) {
    pb::PushUpdateRequest message;
    *message.mutable_chunk() =
        make_chunk(component.layout.scope, offset, component.data.substr(offset, kMaxChunkBytes));
    if (!writer.Write(message)) {
      return false;
    }
  }
  return true;
}

}  // namespace

void Connection::prepare(grpc::ClientContext& context) const {
  if (!token.empty()) {
    context.AddMetadata("authorization", "Bearer " + token);
  }
}

Connection connect(const std::string& address, const std::string& token) {
  grpc::ChannelArguments arguments;
  // A client that only listens would not notice otherwise that the server is gone.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(1000 * kFirstWaitS));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(1000 * kMaxWaitS));
  const auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  return {address, token, pb::FederatedMtlService::NewStub(channel)};
}

Slice download(const Connection& connection, Interruption& interruption, const pb::GetSliceRequest& request) {
  grpc::ClientContext context;
  connection.prepare(context);
  const Interruption::Call call(interruption, context);
  const auto reader = connection.stub->GetSlice(&context, request);
  pb::GetSliceResponse message;
  if (!reader->Read(&message)) {
    require_ok(reader->Finish());
    throw Malformed("expected a header first in the slice's stream");
  }
  try {
    if (!message.has_header()) {
      throw Malformed("expected a header first in the slice's stream");
    }
    Slice slice{message.header(), {}};
    Assembler assembler(slice.header);
    while (reader->Read(&message)) {
      if (!message.has_chunk()) {
        throw Malformed("expected a chunk after the header in the slice's stream");
      }
      assembler.add(message.chunk());
    }
    require_ok(reader->Finish());
    slice.components = assembler.finish();
    return slice;
  } catch (...) {
    context.TryCancel();  // has no effect on a call that is over
    throw;
  }
}

pb::PushUpdateResponse upload(const Connection& connection, Interruption& interruption, const pb::UpdateHeader& header,
                              const std::vector<Component>& components) {
  grpc::ClientContext context;
  connection.prepare(context);
  const Interruption::Call call(interruption, context);
  pb::PushUpdateResponse receipt;
  const auto writer = connection.stub->PushUpdate(&context, &receipt);
  pb::PushUpdateRequest opening;
  *opening.mutable_header() = header;
  bool going_on = writer->Write(opening);
  if (going_on && !components.empty()) {
    writer->WaitForInitialMetadata();  // comes when the server has room for the chunks, or with the call's end
  }
  for (const Component& component : components) {
    going_on = going_on && write_chunks(*writer, component);
  }
  writer->WritesDone();
  require_ok(writer->Finish());
  return receipt;
}

}  // namespace fedmtl_cpp
