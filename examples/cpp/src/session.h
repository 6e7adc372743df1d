// A client's life in a run: watch the rounds, and in each one fetch the slice, train its head, send the update.
#pragma once

#include <string>
#include <vector>

#include "transfer.h"

namespace fedmtl_cpp {

class Session {
 public:
  Session(Connection connection, Interruption& interruption, std::string client_id, std::string task);

  // Takes part until the run is over, over however many streams of events.
  void run();

 private:
  struct Update {
    pb::UpdateHeader header;
    std::vector<Component> components;
    // As the log shows it.
    std::string loss;
  };

  // Follows one stream to its end. True if the run is over.
  bool watch();
  void follow(const pb::WatchRoundsResponse& event);
  void take_part(const pb::WatchRoundsResponse& event);
  Update work(const Slice& slice) const;

  Connection connection_;
  Interruption& interruption_;
  std::string client_id_, task_;
  // The run that the client has joined, and what it was last told to wait for.
  std::string joined_, waiting_;
  double patience_s_ = kFirstPatienceS;
};

}  // namespace fedmtl_cpp
