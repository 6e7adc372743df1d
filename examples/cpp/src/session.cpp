#include "session.h"

#include <random>

#include "encodings.h"
#include "head.h"

namespace fedmtl_cpp {
namespace {

// Names an update for good.
std::string new_id() {
  std::random_device random;
  std::string bytes(16, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(random());
  }
  return to_hex(bytes);
}

google::protobuf::Map<std::string, double> to_proto(const Metrics& metrics, bool regression) {
  google::protobuf::Map<std::string, double> out;
  out["loss"] = metrics.loss;
  out[regression ? "pearson" : "accuracy"] = metrics.score;
  return out;
}

// Trained minus received, of components that are all float32.
std::string difference(const std::string& trained, const std::string& received) {
  std::string out(received.size(), '\0');
  for (std::size_t i = 0; i < out.size(); i += 4) {
    store_float(&out[i], load_float(&trained[i]) - load_float(&received[i]));
  }
  return out;
}

}  // namespace

Session::Session(Connection connection, Interruption& interruption, std::string client_id, std::string task)
    : connection_(std::move(connection)),
      interruption_(interruption),
      client_id_(std::move(client_id)),
      task_(std::move(task)) {}

void Session::run() {
  while (!watch()) {
  }
}

bool Session::watch() {
  pb::WatchRoundsRequest request;
  request.set_client_id(client_id_);
  request.set_task(task_);
  // A call's context is for one call, so every attempt has its own.
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<Interruption::Call> call;
  std::unique_ptr<grpc::ClientReader<pb::WatchRoundsResponse>> events;
  pb::WatchRoundsResponse event;
  // The stream is open, and the client present, once its first event is there: where the run stands.
  persist(interruption_, patience_s_, "joining the run at " + connection_.address, [&] {
    events.reset();
    call.reset();
    context = std::make_unique<grpc::ClientContext>();
    connection_.prepare(*context);
    call = std::make_unique<Interruption::Call>(interruption_, *context);
    events = connection_.stub->WatchRounds(context.get(), request);
    if (!events->Read(&event)) {
      const grpc::Status status = events->Finish();
      throw CallFailed(status.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "no event came") : status);
    }
  });
  patience_s_ = kPatienceS;
  try {
    do {
      if (event.kind() == pb::ROUND_EVENT_KIND_FINISHED) {
        log_line("run finished after round " + std::to_string(event.round()));
        context->TryCancel();
        return true;
      }
      follow(event);
      // Events wait here while the client works. The server keeps some hundreds; a client whose training takes long
      // reads them beside it, and stops when one says that the round has closed.
    } while (events->Read(&event));
  } catch (...) {
    context->TryCancel();
    throw;
  }
  grpc::Status status = events->Finish();
  if (status.ok()) {
    status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server ended the stream early");
  }
  interruption_.check();
  if (will_pass(status)) {
    log_line("server lost: " + status.error_message());
  }
  back_off(interruption_, "watching the rounds", status, kFirstWaitS);
  return false;
}

void Session::follow(const pb::WatchRoundsResponse& event) {
  const std::string round = "round " + std::to_string(event.round()) + ": ";
  if (joined_ != event.run_id()) {
    joined_ = event.run_id();
    log_line("joined run " + joined_ + " as " + client_id_ + " for " + task_);
  }
  if (event.kind() == pb::ROUND_EVENT_KIND_WAITING && waiting_ != event.waiting_for()) {
    waiting_ = event.waiting_for();
    log_line(round + "waiting for " + waiting_);
  }
  if (event.kind() == pb::ROUND_EVENT_KIND_OPENED && event.in_cohort() && !event.reported()) {
    try {
      take_part(event);
    } catch (const RoundLost& lost) {
      log_line(round + "missed: " + lost.what());
    }
  }
}

void Session::take_part(const pb::WatchRoundsResponse& event) {
  const std::string round = "round " + std::to_string(event.round()) + ": ";
  pb::GetSliceRequest request;
  request.set_run_id(event.run_id());
  request.set_client_id(client_id_);
  request.set_task(task_);
  request.set_round(event.round());
  request.set_encoding(pb::ENCODING_FLOAT32);
  Slice slice;
  Assembler parts;
  persist(interruption_, patience_s_, round + "getting the slice",
          [&] { slice = download(connection_, interruption_, request, parts); });
  Update update = work(slice);
  pb::PushUpdateResponse receipt;
  bool broken = false;
  persist(interruption_, patience_s_, round + "sending the update", [&] {
    if (broken) {
      resume(connection_, interruption_, update.header);
      broken = false;
    }
    try {
      receipt = upload(connection_, interruption_, update.header, update.components);
    } catch (const CallFailed& error) {
      // A call that a limit refused has left nothing to ask for; and to ask would count against the limit too.
      broken = advice_for(error.status).next == Next::kTryAgain && !update.components.empty();
      throw;
    }
  });
  const bool before = receipt.outcome() == pb::OUTCOME_DUPLICATE;
  log_line(round + "slice " + rounded(static_cast<double>(slice.header.total_bytes()) / 1e6, 1) + " MB, loss " +
           update.loss + (before ? ", accepted before" : ", accepted"));
}

Session::Update Session::work(const Slice& slice) const {
  std::vector<Component> components = slice.components;  // the encoder goes back as it came
  Component* mine = nullptr;
  for (Component& component : components) {
    if (component.layout.scope == "task:" + task_) {
      mine = &component;
    }
  }
  if (mine == nullptr) {
    throw Malformed("the slice has no head of " + task_);
  }
  Head head = read_head(*mine, slice.header.plan());
  const std::vector<Example> rows = examples_for(head);
  const Metrics before = measure(head, rows);
  const auto num_rows = static_cast<std::int64_t>(rows.size());
  pb::UpdateHeader header;
  header.set_run_id(slice.header.run_id());
  header.set_client_id(client_id_);
  header.set_task(task_);
  header.set_base_round(slice.header.round());
  header.set_update_id(new_id());
  header.set_kind(pb::UPDATE_KIND_METRICS);
  *header.mutable_received_metrics() = to_proto(before, head.regression);
  header.set_num_eval_examples(num_rows);
  if (slice.header.purpose() == pb::ROUND_PURPOSE_EVALUATE) {
    return {header, {}, rounded(before.loss, 4)};
  }
  train(head, rows);
  const Metrics after = measure(head, rows);
  const std::string received = mine->data;
  mine->data = write_head(*mine, head);
  header.set_kind(pb::UPDATE_KIND_PARAMETERS);
  if (slice.header.plan().update_kind() == pb::UPDATE_KIND_DELTA) {
    header.set_kind(pb::UPDATE_KIND_DELTA);
    for (Component& component : components) {
      // An encoder that isn't changed has a difference of 0, whatever the dtypes.
      component.data = &component == mine ? difference(mine->data, received) : std::string(component.data.size(), '\0');
    }
  }
  for (const Component& component : components) {
    *header.add_components() = fedmtl_cpp::to_proto(component.layout);
  }
  header.set_num_examples(num_rows);
  header.set_num_steps(kNumSteps);
  *header.mutable_trained_metrics() = to_proto(after, head.regression);
  return {header, std::move(components), rounded(before.loss, 4) + " -> " + rounded(after.loss, 4)};
}

}  // namespace fedmtl_cpp
