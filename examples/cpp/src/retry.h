// The reaction to errors: retries and waits.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

namespace fedmtl_cpp {

// A call has failed.
struct CallFailed : std::runtime_error {
  explicit CallFailed(grpc::Status why) : std::runtime_error(why.error_message()), status(std::move(why)) {}
  grpc::Status status;
};

// The client can't contribute to the round; it waits for the next event.
struct RoundLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The user stopped the client with a signal.
struct Interrupted : std::runtime_error {
  explicit Interrupted(int by) : std::runtime_error("interrupted"), signal(by) {}
  int signal;
};

// Ends the calls in progress when the user stops the client. Safe to use from several threads.
class Interruption {
 public:
  // Cancels the calls in progress, and every later one.
  void request(int signal);

  // Throws Interrupted if an interruption was requested.
  void check();

  // Waits; throws Interrupted when an interruption is requested.
  void sleep(double seconds);

  // While this object lives, its call is cancelled with the others.
  class Call {
   public:
    Call(Interruption& interruption, grpc::ClientContext& context);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    Interruption& interruption_;
    grpc::ClientContext& context_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  // 0 until an interruption is requested.
  int signal_ = 0;
  std::set<grpc::ClientContext*> calls_;
};

enum class Next { kStop, kTryAgain, kTryAgainLater, kLeaveRound };

// The reaction to a status that the contract specifies, and the wait if the server asks for one.
struct Advice {
  Next next;
  double wait_s = 0;
};

Advice advice_for(const grpc::Status& status);

// Whether a call can be retried.
bool will_pass(const grpc::Status& status);

// How long to retry a server that was never reached, because a user is waiting; and a server that was reached, which can
// be restarted.
constexpr double kFirstPatienceS = 15, kPatienceS = 300;

// Repeats a call until it succeeds, the contract says to stop, or the server was silent for too long.
void persist(Interruption& interruption, double patience_s, const std::string& what,
             const std::function<void()>& call);

// Waits before a retry: a random time up to `ceiling_s`, or the time that the server asks for. Throws if the call must
// not be retried.
void back_off(Interruption& interruption, const std::string& what, const grpc::Status& status, double ceiling_s);

// The maximum wait before the first retry, and before any retry.
constexpr double kFirstWaitS = 0.2, kMaxWaitS = 5;

// Writes one line for one event to standard output.
void log_line(const std::string& line);

// A number with a fixed number of digits after the point.
std::string rounded(double x, int digits);

}  // namespace fedmtl_cpp
