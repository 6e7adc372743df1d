// What a client does about an error, and how patiently.
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

// Nothing can be done for the round any more; the next event says how it goes on.
struct RoundLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The user has said to stop, with a signal.
struct Interrupted : std::runtime_error {
  explicit Interrupted(int by) : std::runtime_error("interrupted"), signal(by) {}
  int signal;
};

// Ends what is in progress when the user says to stop. Safe to use from several threads.
class Interruption {
 public:
  // Cancels the calls in progress, and every later one.
  void request(int signal);

  // Throws Interrupted once it was requested.
  void check();

  // Waits; throws Interrupted when it is requested.
  void sleep(double seconds);

  // While it lives, its call is cancelled with the others.
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
  // 0 until it was requested.
  int signal_ = 0;
  std::set<grpc::ClientContext*> calls_;
};

enum class Next { kStop, kTryAgain, kTryAgainLater, kLeaveRound };

// What the contract has a caller do about a status, and after how long where the server says so.
struct Advice {
  Next next;
  double wait_s = 0;
};

Advice advice_for(const grpc::Status& status);

// Whether a call is worth to be tried again.
bool will_pass(const grpc::Status& status);

// How long to go on trying a server that was never reached, as who typed its address looks on; and one that was, and may
// be started again.
constexpr double kFirstPatienceS = 15, kPatienceS = 300;

// Calls until it goes well, or the contract or the server's silence says to stop.
void persist(Interruption& interruption, double patience_s, const std::string& what,
             const std::function<void()>& call);

// Waits until a call may be tried again after an error: for up to `ceiling_s`, or for as long as the server asks.
// Throws where it may not.
void back_off(Interruption& interruption, const std::string& what, const grpc::Status& status, double ceiling_s);

// How long to wait at most before the first try that follows a failure, and before any.
constexpr double kFirstWaitS = 0.2, kMaxWaitS = 5;

// One line on standard output for one event.
void log_line(const std::string& line);

// A number with so many digits behind the point.
std::string rounded(double x, int digits);

}  // namespace fedmtl_cpp
