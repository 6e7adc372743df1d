// A task's head and its training: all that this client learns with.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "wire.h"

namespace fedmtl_cpp {

// One row of the client's data: what the encoder would make of a text, and its label.
struct Example {
  std::vector<double> features;
  // A class's number, or the number to predict.
  double label;
};

// outputs = weight * features + bias. A regression has one output, the predicted number; else they are logits.
struct Head {
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  bool regression = false;
  // Row-major, (outputs, inputs).
  std::vector<double> weight;
  std::vector<double> bias;
};

// The mean loss over rows, and its derivatives.
struct Gradient {
  double loss = 0;
  std::vector<double> weight;
  std::vector<double> bias;
};

struct Metrics {
  double loss;
  // The accuracy; of a regression Pearson's correlation, if there is one.
  std::optional<double> score;
};

// Where the head lies in a slice.
struct Place {
  // The number of its component.
  std::size_t component = 0;
  Tensor weight, bias;
};

// The names of a head's parameters.
std::pair<std::string, std::string> head_tensors(const std::string& task);

// A head of zeros for the kind of task that the plan names. Throws Malformed for a kind that this client doesn't know:
// it would take every label for something else.
Head first_head(const pb::TrainingPlan& plan, std::size_t inputs);

// Finds the head in a slice, and checks that it is one for the plan's task. Whose component it is in is the server's to
// say: where tasks have encoder layers of their own, these may lie beside the head.
std::pair<Head, Place> read_head(const std::vector<Component>& model, const std::string& task,
                                 const pb::TrainingPlan& plan);

// Puts the head's numbers into its component's bytes.
void write_head(std::string& data, const Place& where, const Head& head);

// The difference of two heads.
Head minus(Head head, const Head& other);

// The client's data, the same in every round. A real client has its rows' texts go through the encoder; here the
// features are vectors of length 1 that a formula gives, and the labels are given out in turn.
std::vector<Example> examples_for(const Head& head);

Gradient gradient_of(const Head& head, const std::vector<Example>& rows);

inline constexpr int kNumSteps = 5;
// Below where descent on rows of length 1 could overshoot.
inline constexpr double kLearningRate = 0.25;
// How many features the rows have where the slice has no head that says it.
inline constexpr std::size_t kOwnInputs = 16;

// The head after so many steps of gradient descent, each over all rows. What a correction has is added to the
// gradients.
Head trained(Head head, const std::vector<Example>& rows, double rate, const std::optional<Head>& correction = {});

Metrics measure(const Head& head, const std::vector<Example>& rows);

// The correlation of two samples; none where one is constant.
std::optional<double> pearson(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace fedmtl_cpp
