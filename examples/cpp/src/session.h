// A client's life in a run: watch the rounds, and in each one fetch the slice, train its head, send the update.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "head.h"
#include "scaffold.h"
#include "transfer.h"

namespace fedmtl_cpp {

class Session {
 public:
  Session(Connection connection, Interruption& interruption, std::string client_id, std::string task);

  // Takes part until the run is over, over however many streams of events.
  void run();

 private:
  // What the client keeps for itself from round to round of one run. It moves with the updates that count alone.
  struct Kept {
    // Its own head, where the plan leaves that to the clients; none before the first round.
    std::optional<Head> head;
    Variates variates;
  };

  // What came of a slice.
  struct Work {
    pb::UpdateHeader header;
    std::vector<Component> components;
    // As the log shows it.
    std::string loss;
    // What the client keeps once the update counts.
    Kept kept;
  };

  // Follows one stream to its end. True if the run is over.
  bool watch();
  void follow(const pb::WatchRoundsResponse& event);
  void take_part(const pb::WatchRoundsResponse& event);
  Work work(const Slice& slice) const;
  // The head to train, and where it lies in the slice: nowhere if the plan leaves it to the clients. Then this one's
  // begins with zeros.
  std::pair<Head, std::optional<Place>> find_head(const std::vector<Component>& model,
                                                  const pb::TrainingPlan& plan) const;

  Connection connection_;
  Interruption& interruption_;
  std::string client_id_, task_;
  // The run that the client has joined, and what it was last told to wait for.
  std::string joined_, waiting_;
  Kept kept_;
  double patience_s_ = kFirstPatienceS;
};

}  // namespace fedmtl_cpp
