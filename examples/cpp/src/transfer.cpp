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

// Writes a component's chunks. Returns false if the call is over; its status has the reason.
bool write_chunks(grpc::ClientWriter<pb::PushUpdateRequest>& writer, const Component& component, std::uint64_t offset) {
  for (; offset < component.data.size(); offset += kMaxChunkBytes) {
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
  // Without pings, a client that only listens would not notice a dead server.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(1000 * kFirstWaitS));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(1000 * kMaxWaitS));
  const auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  return {address, token, pb::FederatedMtlService::NewStub(channel)};
}

Slice download(const Connection& connection, Interruption& interruption, pb::GetSliceRequest request,
               Assembler& parts) {
  request.clear_held();
  for (pb::HeldComponent& one : parts.held()) {
    *request.add_held() = std::move(one);
  }
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
    parts.begin(slice.header);
    while (reader->Read(&message)) {
      if (!message.has_chunk()) {
        throw Malformed("expected a chunk after the header in the slice's stream");
      }
      parts.add(message.chunk());
    }
    require_ok(reader->Finish());
    slice.components = parts.finish();
    return slice;
  } catch (...) {
    context.TryCancel();  // has no effect on a call that is over
    throw;
  }
}

void resume(const Connection& connection, Interruption& interruption, pb::UpdateHeader& header) {
  grpc::ClientContext context;
  connection.prepare(context);
  const Interruption::Call call(interruption, context);
  pb::QueryUploadRequest request;
  request.set_run_id(header.run_id());
  request.set_client_id(header.client_id());
  request.set_update_id(header.update_id());
  pb::QueryUploadResponse answer;
  require_ok(connection.stub->QueryUpload(&context, request, &answer));
  for (pb::Component& component : *header.mutable_components()) {
    component.set_start_offset(0);
    for (const pb::StagedComponent& staged : answer.components()) {
      if (staged.scope() == component.scope()) {
        component.set_start_offset(staged.num_bytes());
      }
    }
    if (component.start_offset() > component.encoded_bytes()) {
      throw Malformed(component.scope() + ": the server has more of it than there is");
    }
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
    writer->WaitForInitialMetadata();  // arrives when the server has room for the chunks, or with the call's end
  }
  for (std::size_t i = 0; i < components.size(); ++i) {
    const std::uint64_t offset = header.components(static_cast<int>(i)).start_offset();
    going_on = going_on && write_chunks(*writer, components[i], offset);
  }
  writer->WritesDone();
  require_ok(writer->Finish());
  return receipt;
}

}  // namespace fedmtl_cpp
