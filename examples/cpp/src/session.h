// A client's life in a run: watch the rounds; in each round get the slice, train its head, push the update.
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

  // Participates until the run is over, with as many streams of events as necessary.
  void run();

 private:
  // The state that a client keeps from round to round of one run. It changes only with updates that count.
  struct Kept {
    // The client's own head if the plan leaves the head to the clients; empty before the first round.
    std::optional<Head> head;
    Variates variates;
  };

  // The result of a round's work on a slice.
  struct Work {
    pb::UpdateHeader header;
    std::vector<Component> components;
    // The loss in the form of the log.
    std::string loss;
    // The client's state for when the update counts.
    Kept kept;
  };

  // Follows one stream to its end. Returns true if the run is over.
  bool watch();
  void follow(const pb::WatchRoundsResponse& event);
  void take_part(const pb::WatchRoundsResponse& event);
  Work work(const Slice& slice) const;
  // The head to train, and its position in the slice. If the plan leaves the head to the clients, the slice has no head,
  // and this client's head begins with zeros.
  std::pair<Head, std::optional<Place>> find_head(const std::vector<Component>& model,
                                                  const pb::TrainingPlan& plan) const;

  Connection connection_;
  Interruption& interruption_;
  std::string client_id_, task_;
  // The run that the client has joined, and the last wait condition that it logged.
  std::string joined_, waiting_;
  Kept kept_;
  double patience_s_ = kFirstPatienceS;
};

}  // namespace fedmtl_cpp
