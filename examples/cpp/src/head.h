// A task's head and its training: all that this client learns with.
#pragma once

#include <string>
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
  // The accuracy; of a regression Pearson's correlation.
  double score;
};

// Finds the head in its component, and checks that it is one for the kind of task that the plan names.
Head read_head(const Component& component, const pb::TrainingPlan& plan);

// The component's bytes with the head in them.
std::string write_head(const Component& component, const Head& head);

// The client's data, the same in every round. A real client has its rows' texts go through the encoder; here the
// features are vectors of length 1 that a formula gives, and the labels are given out in turn.
std::vector<Example> examples_for(const Head& head);

Gradient gradient_of(const Head& head, const std::vector<Example>& rows);

inline constexpr int kNumSteps = 5;

// So many steps of gradient descent, each over all rows.
void train(Head& head, const std::vector<Example>& rows);

Metrics measure(const Head& head, const std::vector<Example>& rows);

// The correlation of two samples; 0 where one is constant.
double pearson(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace fedmtl_cpp
