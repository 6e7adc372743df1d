// A FedMTL client in C++ that is small enough to read in one sitting.

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <thread>

#include "session.h"
#include "vectors.h"

namespace {

using namespace fedmtl_cpp;

constexpr char kUsage[] =
    "usage: fedmtl-cpp train --server HOST:PORT --task TASK --client-id ID [--token-file FILE]\n"
    "       fedmtl-cpp vectors DIR\n";

// The last one plus a signal's number is the exit status after that signal.
constexpr int kExitFailure = 1, kExitUsage = 2, kExitSignal = 128;

// An error in the command line.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Ends the calls in progress on SIGINT and SIGTERM, in its own thread, because a signal handler can do hardly anything.
class SignalWatch {
 public:
  explicit SignalWatch(Interruption& interruption) {
    sigemptyset(&signals_);
    for (const int number : {SIGINT, SIGTERM, SIGUSR1}) {
      sigaddset(&signals_, number);
    }
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);  // in this thread and all threads that it starts, including gRPC's
    thread_ = std::thread([this, &interruption] {
      int number = 0;
      if (sigwait(&signals_, &number) == 0 && number != SIGUSR1) {
        interruption.request(number);
      }
    });
  }
  ~SignalWatch() {
    pthread_kill(thread_.native_handle(), SIGUSR1);  // ends the thread's wait
    thread_.join();
  }
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  sigset_t signals_;
  std::thread thread_;
};

// Reads a token. It never shows content that isn't a token, because that can be another secret.
std::string read_token(const std::string& path) {
  std::ifstream file(path);
  std::string token((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) {
    throw UsageError("--token-file: " + path + ": " + std::strerror(errno));
  }
  token.erase(token.find_last_not_of(" \r\n\t") + 1);
  const bool printable = std::all_of(token.begin(), token.end(), [](char c) { return c >= '!' && c <= '~'; });
  if (!printable || token.size() < 16 || token.size() > 512) {
    throw UsageError("--token-file: " + path + ": expected one token as `fedmtl-server clients add` gives it");
  }
  return token;
}

std::map<std::string, std::string> parse(int count, char** arguments) {
  std::map<std::string, std::string> values{{"--server", ""}, {"--task", ""}, {"--client-id", ""}, {"--token-file", ""}};
  for (int i = 0; i < count; i += 2) {
    const auto option = values.find(arguments[i]);
    if (option == values.end()) {
      throw UsageError(std::string("unexpected argument '") + arguments[i] + "'");
    }
    if (i + 1 == count) {
      throw UsageError(std::string(arguments[i]) + ": expected a value");
    }
    option->second = arguments[i + 1];
  }
  if (values["--task"].empty() || values["--client-id"].empty()) {
    throw UsageError("--server, --task and --client-id are needed");
  }
  const std::string& server = values["--server"];
  const std::size_t colon = server.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == server.size() ||
      server.find_first_not_of("0123456789", colon + 1) != std::string::npos) {
    throw UsageError("--server: expected HOST:PORT, got '" + server + "'");
  }
  return values;
}

void train(int count, char** arguments) {
  auto options = parse(count, arguments);
  const std::string token = options["--token-file"].empty() ? "" : read_token(options["--token-file"]);
  Interruption interruption;
  const SignalWatch signals(interruption);
  Session session(connect(options["--server"], token), interruption, options["--client-id"], options["--task"]);
  session.run();
}

void command(int count, char** arguments) {
  const std::string name = count > 0 ? arguments[0] : "";
  if (name == "vectors" && count == 2) {
    log_line(std::to_string(check_vectors(arguments[1])) + " vectors passed");
  } else if (name == "train") {
    train(count - 1, arguments + 1);
  } else {
    throw UsageError("expected `train` with its options, or `vectors` with a folder");
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    command(count - 1, arguments + 1);
  } catch (const Interrupted& error) {
    log_line(error.what());
    return kExitSignal + error.signal;
  } catch (const UsageError& error) {
    std::cerr << "error: " << error.what() << "\n" << kUsage;
    return kExitUsage;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return kExitFailure;
  }
}
