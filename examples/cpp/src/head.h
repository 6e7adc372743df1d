// A task's head and its training. This client trains nothing else.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "wire.h"

namespace fedmtl_cpp {

// One row of the client's data: a vector in place of an encoded text, and its label.
struct Example {
  std::vector<double> features;
  // The number of a class, or the number to predict.
  double label;
};

// outputs = weight * features + bias. A regression has one output, the predicted number; other outputs are logits.
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
  // The accuracy; for a regression the Pearson correlation, unless it is undefined.
  std::optional<double> score;
};

// The position of the head in a slice.
struct Place {
  // The index of the head's component.
  std::size_t component = 0;
  Tensor weight, bias;
};

// The names of a head's parameters.
std::pair<std::string, std::string> head_tensors(const std::string& task);

// A head of zeros for the plan's task type. Throws Malformed for a task type that this client doesn't know, because it
// would misread every label.
Head first_head(const pb::TrainingPlan& plan, std::size_t inputs);

// Finds the head in a slice, and checks that it fits the plan's task. The server decides which component it is in: if
// tasks have encoder layers of their own, these layers can be in the head's component.
std::pair<Head, Place> read_head(const std::vector<Component>& model, const std::string& task,
                                 const pb::TrainingPlan& plan);

// Writes the head's numbers to its component's bytes.
void write_head(std::string& data, const Place& where, const Head& head);

// The difference of two heads.
Head minus(Head head, const Head& other);

// The client's data, the same in every round. A real client runs its texts through the encoder. Here the features are
// vectors of length 1 from a formula, and the rows get the labels in turn.
std::vector<Example> examples_for(const Head& head);

Gradient gradient_of(const Head& head, const std::vector<Example>& rows);

inline constexpr int kNumSteps = 5;
// Small enough that descent on rows of length 1 does not overshoot.
inline constexpr double kLearningRate = 0.25;
// The number of features of the rows if the slice has no head that determines it.
inline constexpr std::size_t kOwnInputs = 16;

// The head after some steps of gradient descent, each over all rows. The correction is added to the gradients.
Head trained(Head head, const std::vector<Example>& rows, double rate, const std::optional<Head>& correction = {});

Metrics measure(const Head& head, const std::vector<Example>& rows);

// The correlation of two samples; empty if one is constant, because the correlation is undefined.
std::optional<double> pearson(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace fedmtl_cpp
