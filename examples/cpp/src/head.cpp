#include "head.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "encodings.h"

namespace fedmtl_cpp {
namespace {

constexpr std::size_t kNumExamples = 8;
constexpr double kLearningRate = 0.5;

// Where a head's two tensors lie.
struct Places {
  Tensor weight, bias;
};

// Finds them by their names.
Places places_in(const Layout& layout) {
  const std::string prefix = "heads." + layout.scope.substr(layout.scope.find(':') + 1);
  Places places{};
  for (const Tensor& tensor : layout.tensors) {
    if (tensor.name == prefix + ".weight") {
      places.weight = tensor;
    } else if (tensor.name == prefix + ".bias") {
      places.bias = tensor;
    }
  }
  const auto& [weight, bias] = places;
  const bool linear = weight.shape.size() == 2 && bias.shape.size() == 1 && weight.shape[0] == bias.shape[0];
  const bool exact = weight.dtype == pb::ELEMENT_TYPE_FLOAT32 && bias.dtype == pb::ELEMENT_TYPE_FLOAT32;
  if (layout.tensors.size() != 2 || !linear || !exact || weight.elements == 0) {
    throw Malformed(layout.scope + ": expected " + prefix + ".weight (outputs, inputs) and " + prefix +
                    ".bias (outputs) in float32");
  }
  return places;
}

std::vector<double> read_floats(const std::string& data, const Tensor& tensor) {
  std::vector<double> values(tensor.elements);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = load_float(data.data() + tensor.offset + 4 * i);
  }
  return values;
}

void write_floats(std::string& data, const Tensor& tensor, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    store_float(data.data() + tensor.offset + 4 * i, static_cast<float>(values[i]));
  }
}

std::vector<double> output(const Head& head, const std::vector<double>& features) {
  std::vector<double> out = head.bias;
  for (std::size_t k = 0; k < out.size(); ++k) {
    const auto row = head.weight.begin() + static_cast<std::ptrdiff_t>(k * head.inputs);
    out[k] += std::inner_product(features.begin(), features.end(), row, 0.0);
  }
  return out;
}

std::size_t argmax(const std::vector<double>& values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// One example's loss and its derivative by every output: squared error, or cross-entropy of the softmax.
std::pair<double, std::vector<double>> loss_of(const Head& head, const Example& row) {
  std::vector<double> out = output(head, row.features);
  if (head.regression) {
    const double miss = out[0] - row.label;
    return {miss * miss, {2 * miss}};
  }
  const double largest = out[argmax(out)];
  double sum = 0;
  for (double& x : out) {
    x = std::exp(x - largest);  // so that nothing overflows
    sum += x;
  }
  for (double& x : out) {
    x /= sum;
  }
  const auto label = static_cast<std::size_t>(row.label);
  const double loss = -std::log(out[label]);
  out[label] -= 1;
  return {loss, out};
}

}  // namespace

Head read_head(const Component& component, const pb::TrainingPlan& plan) {
  const auto [weight, bias] = places_in(component.layout);
  Head head;
  head.outputs = weight.shape[0];
  head.inputs = weight.shape[1];
  head.weight = read_floats(component.data, weight);
  head.bias = read_floats(component.data, bias);
  const std::string has = component.layout.scope + ": " + std::to_string(head.outputs) + " outputs";
  switch (plan.task_type()) {
    case pb::TASK_TYPE_CLASSIFICATION:
      if (static_cast<std::size_t>(plan.labels_size()) != head.outputs) {
        throw Malformed(has + " for " + std::to_string(plan.labels_size()) + " labels");
      }
      break;
    case pb::TASK_TYPE_REGRESSION:
      if (head.outputs != 1) {
        throw Malformed(has + ", expected one of a regression");
      }
      head.regression = true;
      break;
    default:  // the server doesn't say
      head.regression = head.outputs == 1;
  }
  return head;
}

std::string write_head(const Component& component, const Head& head) {
  std::string data = component.data;
  const auto [weight, bias] = places_in(component.layout);
  write_floats(data, weight, head.weight);
  write_floats(data, bias, head.bias);
  return data;
}

std::vector<Example> examples_for(const Head& head) {
  std::vector<Example> rows;
  for (std::size_t i = 0; i < kNumExamples; ++i) {
    std::vector<double> features(head.inputs);
    double length = 0;
    for (std::size_t j = 0; j < head.inputs; ++j) {
      features[j] = std::cos(static_cast<double>((i + 1) * (j + 1)));
      length += features[j] * features[j];
    }
    for (double& x : features) {
      x /= std::sqrt(length);
    }
    const double number = static_cast<double>(i) / (kNumExamples - 1);
    rows.push_back({std::move(features), head.regression ? number : static_cast<double>(i % head.outputs)});
  }
  return rows;
}

Gradient gradient_of(const Head& head, const std::vector<Example>& rows) {
  Gradient gradient{0, std::vector<double>(head.weight.size()), std::vector<double>(head.bias.size())};
  const double share = 1 / static_cast<double>(rows.size());
  for (const Example& row : rows) {
    const auto [loss, slope] = loss_of(head, row);
    gradient.loss += loss * share;
    for (std::size_t k = 0; k < head.outputs; ++k) {
      gradient.bias[k] += slope[k] * share;
      for (std::size_t j = 0; j < head.inputs; ++j) {
        gradient.weight[k * head.inputs + j] += slope[k] * row.features[j] * share;
      }
    }
  }
  return gradient;
}

void train(Head& head, const std::vector<Example>& rows) {
  for (int step = 0; step < kNumSteps; ++step) {
    const Gradient gradient = gradient_of(head, rows);
    for (std::size_t i = 0; i < head.weight.size(); ++i) {
      head.weight[i] -= kLearningRate * gradient.weight[i];
    }
    for (std::size_t k = 0; k < head.bias.size(); ++k) {
      head.bias[k] -= kLearningRate * gradient.bias[k];
    }
  }
}

Metrics measure(const Head& head, const std::vector<Example>& rows) {
  std::vector<double> predictions, labels;
  double right = 0;
  for (const Example& row : rows) {
    const std::vector<double> out = output(head, row.features);
    predictions.push_back(out[0]);
    labels.push_back(row.label);
    right += argmax(out) == static_cast<std::size_t>(row.label) ? 1 : 0;
  }
  const double accuracy = right / static_cast<double>(rows.size());
  return {gradient_of(head, rows).loss, head.regression ? pearson(predictions, labels) : accuracy};
}

double pearson(const std::vector<double>& a, const std::vector<double>& b) {
  const double mean_a = mean(a), mean_b = mean(b);
  double covariance = 0, variance_a = 0, variance_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = a[i] - mean_a, y = b[i] - mean_b;
    covariance += x * y;
    variance_a += x * x;
    variance_b += y * y;
  }
  return variance_a == 0 || variance_b == 0 ? 0 : covariance / std::sqrt(variance_a * variance_b);
}

}  // namespace fedmtl_cpp
