#include "retry.h"

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <optional>
#include <random>
#include <sstream>

#include "status_details.pb.h"
#include "wire.h"

namespace fedmtl_cpp {
namespace {

using Clock = std::chrono::steady_clock;

// The longest wait that this client accepts from a server.
constexpr double kMaxAskedWaitS = 3600;

double uniform(double below) {
  static std::mt19937 generator{std::random_device{}()};
  return std::uniform_real_distribution<double>(0, below)(generator);
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// The wait that a status asks for, if its details have one.
std::optional<double> retry_delay_s(const grpc::Status& status) {
  rpc::Status details;
  if (!details.ParseFromString(status.error_details())) {
    return std::nullopt;
  }
  for (const google::protobuf::Any& detail : details.details()) {
    rpc::RetryInfo info;
    const std::string& url = detail.type_url();
    const bool named = url.substr(url.rfind('/') + 1) == "google.rpc.RetryInfo";
    if (named && info.ParseFromString(detail.value()) && info.has_retry_delay()) {
      const double asked_s = static_cast<double>(info.retry_delay().seconds()) + 1e-9 * info.retry_delay().nanos();
      return std::clamp(asked_s, 0.0, kMaxAskedWaitS);
    }
  }
  return std::nullopt;
}

// Makes the call, and returns its failure as a status.
grpc::Status attempt(const std::function<void()>& call) {
  try {
    call();
  } catch (const CallFailed& error) {
    return error.status;
  } catch (const Damaged& error) {
    return {grpc::StatusCode::DATA_LOSS, error.what()};
  }
  return grpc::Status::OK;
}

}  // namespace

void Interruption::request(int signal) {
  const std::lock_guard<std::mutex> lock(mutex_);
  signal_ = signal;
  for (grpc::ClientContext* call : calls_) {
    call->TryCancel();
  }
  changed_.notify_all();
}

void Interruption::check() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (signal_ != 0) {
    throw Interrupted(signal_);
  }
}

void Interruption::sleep(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return signal_ != 0; })) {
    throw Interrupted(signal_);
  }
}

Interruption::Call::Call(Interruption& interruption, grpc::ClientContext& context)
    : interruption_(interruption), context_(context) {
  interruption_.check();
  const std::lock_guard<std::mutex> lock(interruption_.mutex_);
  interruption_.calls_.insert(&context_);
}

Interruption::Call::~Call() {
  const std::lock_guard<std::mutex> lock(interruption_.mutex_);
  interruption_.calls_.erase(&context_);
}

Advice advice_for(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DATA_LOSS:
      return {Next::kTryAgain};
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::FAILED_PRECONDITION:
      return {Next::kLeaveRound};
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      if (const std::optional<double> asked_s = retry_delay_s(status)) {
        return {Next::kTryAgainLater, *asked_s};
      }
      return {Next::kStop};
    default:
      return {Next::kStop};
  }
}

bool will_pass(const grpc::Status& status) {
  const Next next = advice_for(status).next;
  return next == Next::kTryAgain || next == Next::kTryAgainLater;
}

void persist(Interruption& interruption, double patience_s, const std::string& what,
             const std::function<void()>& call) {
  std::optional<Clock::time_point> failing;
  for (double ceiling_s = kFirstWaitS;; ceiling_s = std::min(2 * ceiling_s, kMaxWaitS)) {
    const grpc::Status status = attempt(call);
    if (status.ok()) {
      return;
    }
    interruption.check();
    if (!failing) {
      failing = Clock::now();
      if (will_pass(status)) {
        log_line(what + ": trying again: " + status.error_message());
      }
    }
    const double failing_s = seconds_since(*failing);
    if (advice_for(status).next == Next::kTryAgain && failing_s > patience_s) {
      throw std::runtime_error(what + ": gave up after " + rounded(failing_s, 0) + " s: " + status.error_message());
    }
    back_off(interruption, what, status, std::min(ceiling_s, patience_s - failing_s + kFirstWaitS));
  }
}

void back_off(Interruption& interruption, const std::string& what, const grpc::Status& status, double ceiling_s) {
  interruption.check();
  const Advice advice = advice_for(status);
  double wait_s = 0;
  switch (advice.next) {
    case Next::kStop:
      throw std::runtime_error(what + ": " + status.error_message());
    case Next::kLeaveRound:
      throw RoundLost(status.error_message());
    case Next::kTryAgain:
      wait_s = uniform(ceiling_s);
      break;
    case Next::kTryAgainLater:
      wait_s = advice.wait_s + uniform(advice.wait_s / 2);  // so that clients don't retry at the same moment
      break;
  }
  interruption.sleep(wait_s);
}

void log_line(const std::string& line) { std::cout << line << std::endl; }

std::string rounded(double x, int digits) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << x;
  return out.str();
}

}  // namespace fedmtl_cpp
