#include "session.h"

#include <random>


namespace fedmtl_cpp {
namespace {

// Returns a permanent id for an update.
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
  if (metrics.score) {
    out[regression ? "pearson" : "accuracy"] = *metrics.score;
  }
  return out;
}

// The details of an evaluation beyond its metrics.
pb::EvaluationDetails details_of(const Metrics& metrics) {
  pb::EvaluationDetails details;
  if (!metrics.score) {
    details.add_undefined("pearson");
  }
  return details;
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
  // A context is for one call, so every attempt has its own context.
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<Interruption::Call> call;
  std::unique_ptr<grpc::ClientReader<pb::WatchRoundsResponse>> events;
  pb::WatchRoundsResponse event;
  // The first event, the run's current state, says that the stream is open and the client is present.
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
      // Events wait while the client works; the server keeps some hundreds of them. A client with long training reads
      // them concurrently, and stops when an event says that the round has closed.
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
    kept_ = {};
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
  Work done = work(slice);
  pb::PushUpdateResponse receipt;
  bool broken = false;
  persist(interruption_, patience_s_, round + "sending the update", [&] {
    if (broken) {
      resume(connection_, interruption_, done.header);
      broken = false;
    }
    try {
      receipt = upload(connection_, interruption_, done.header, done.components);
    } catch (const CallFailed& error) {
      // After a call that a limit refused, nothing is staged, and QueryUpload would count toward the limit too.
      broken = advice_for(error.status).next == Next::kTryAgain && !done.components.empty();
      throw;
    }
  });
  kept_ = std::move(done.kept);
  const bool before = receipt.outcome() == pb::OUTCOME_DUPLICATE;
  log_line(round + "slice " + rounded(static_cast<double>(slice.header.total_bytes()) / 1e6, 1) + " MB, loss " +
           done.loss + (before ? ", accepted before" : ", accepted"));
}

namespace {

// Returns the components of a slice that the round doesn't leave as they are.
std::vector<Component> written(const Slice& slice) {
  std::vector<Component> writable;
  for (std::size_t i = 0; i < slice.components.size(); ++i) {
    if (!slice.header.components(static_cast<int>(i)).read_only()) {
      writable.push_back(slice.components[i]);
    }
  }
  return writable;
}

}  // namespace

Session::Work Session::work(const Slice& slice) const {
  const pb::TrainingPlan& plan = slice.header.plan();
  const Parted parted = split(written(slice));
  const auto [head, where] = find_head(parted.model, plan);
  const std::vector<Example> rows = examples_for(head);
  const Metrics before = measure(head, rows);
  const auto num_rows = static_cast<std::int64_t>(rows.size());
  Work done{{}, {}, rounded(before.loss, 4), kept_};
  pb::UpdateHeader& header = done.header;
  header.set_run_id(slice.header.run_id());
  header.set_client_id(client_id_);
  header.set_task(task_);
  header.set_base_round(slice.header.round());
  header.set_update_id(new_id());
  header.set_kind(pb::UPDATE_KIND_METRICS);
  *header.mutable_received_metrics() = to_proto(before, head.regression);
  *header.mutable_received_details() = details_of(before);
  header.set_num_eval_examples(num_rows);
  if (slice.header.purpose() == pb::ROUND_PURPOSE_EVALUATE) {
    return done;
  }
  // With SGD the plan's rate fits these steps.
  const double rate = plan.optimizer() == pb::LOCAL_OPTIMIZER_SGD ? plan.learning_rate() : kLearningRate;
  const double rate_sum = kNumSteps * rate;
  const Variates own = kept_.variates.begin(slice.header.control_since());
  const Vectors corrections = own.corrections(parted);
  const bool corrected = !corrections.empty();
  std::optional<Head> correction;
  if (corrected && where) {
    correction = head_correction(corrections.at(parted.model[where->component].layout.scope), *where);
  }
  const Head after = trained(head, rows, rate, correction);
  const bool is_delta = corrected || plan.update_kind() == pb::UPDATE_KIND_DELTA;
  header.set_kind(is_delta ? pb::UPDATE_KIND_DELTA : pb::UPDATE_KIND_PARAMETERS);
  for (std::size_t i = 0; i < parted.model.size(); ++i) {
    Component component = parted.model[i];  // parameters except the head are unchanged: their difference is 0
    if (is_delta) {
      component.data.assign(component.data.size(), '\0');
    }
    if (corrected) {
      descend(component.data, corrections.at(component.layout.scope), rate_sum);
    }
    if (where && where->component == i) {
      write_head(component.data, *where, is_delta ? minus(after, head) : after);
    }
    *header.add_components() = fedmtl_cpp::to_proto(component.layout);
    done.components.push_back(std::move(component));
  }
  const Metrics metrics = measure(after, rows);
  header.set_num_examples(num_rows);
  header.set_num_steps(kNumSteps);
  *header.mutable_trained_metrics() = to_proto(metrics, head.regression);
  *header.mutable_trained_details() = details_of(metrics);
  done.loss += " -> " + rounded(metrics.loss, 4);
  if (!where) {
    done.kept.head = after;
  }
  if (corrected) {
    header.set_learning_rate_sum(rate_sum);
    header.set_control_round(own.round);
    done.kept.variates = own.following(header.base_round(), corrections, done.components, rate_sum);
  }
  return done;
}

std::pair<Head, std::optional<Place>> Session::find_head(const std::vector<Component>& model,
                                                         const pb::TrainingPlan& plan) const {
  const auto [weight, bias] = head_tensors(task_);
  for (const std::string& name : plan.local()) {
    if (name != weight && name != bias) {
      throw Malformed("each client is to keep " + name + " for itself, one of " + std::to_string(plan.local_size()) +
                      " local parameters in the plan; this example can keep its head alone");
    }
  }
  if (plan.local().empty()) {
    return read_head(model, task_, plan);
  }
  return {kept_.head ? *kept_.head : first_head(plan, kOwnInputs), std::nullopt};
}

}  // namespace fedmtl_cpp
