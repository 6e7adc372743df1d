#include "head.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "encodings.h"

namespace fedmtl_cpp {
namespace {

constexpr std::size_t kNumExamples = 8;

Place place_of(const std::vector<Component>& model, const std::string& task) {
  const auto [weight_name, bias_name] = head_tensors(task);
  Place where;
  int found = 0;
  for (std::size_t i = 0; i < model.size(); ++i) {
    for (const Tensor& tensor : model[i].layout.tensors) {
      if (tensor.name.rfind("heads." + task + ".", 0) != 0) {
        continue;
      }
      ++found;
      where.component = i;
      if (tensor.name == weight_name) {
        where.weight = tensor;
      } else if (tensor.name == bias_name) {
        where.bias = tensor;
      }
    }
  }
  const auto& [component, weight, bias] = where;
  const bool linear = weight.shape.size() == 2 && bias.shape.size() == 1 && weight.shape[0] == bias.shape[0];
  const bool exact = weight.dtype == pb::ELEMENT_TYPE_FLOAT32 && bias.dtype == pb::ELEMENT_TYPE_FLOAT32;
  if (found != 2 || !linear || !exact || weight.elements == 0) {
    throw Malformed("expected a slice with " + weight_name + " (outputs, inputs) and " + bias_name +
                    " (outputs) in float32");
  }
  return where;
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

// to += scale * values
void add(std::vector<double>& to, const std::vector<double>& values, double scale) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] += scale * values[i];
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

// One example's loss and its derivatives by the outputs: squared error, or cross-entropy of the softmax.
std::pair<double, std::vector<double>> loss_of(const Head& head, const Example& row) {
  std::vector<double> out = output(head, row.features);
  if (head.regression) {
    const double miss = out[0] - row.label;
    return {miss * miss, {2 * miss}};
  }
  const double largest = out[argmax(out)];
  double sum = 0;
  for (double& x : out) {
    x = std::exp(x - largest);  // prevents an overflow
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

bool is_constant(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [&](double value) { return value == values.front(); });
}

}  // namespace

std::pair<std::string, std::string> head_tensors(const std::string& task) {
  return {"heads." + task + ".weight", "heads." + task + ".bias"};
}

Head first_head(const pb::TrainingPlan& plan, std::size_t inputs) {
  Head head;
  head.inputs = inputs;
  head.regression = plan.task_type() == pb::TASK_TYPE_REGRESSION;
  const auto num_labels = static_cast<std::size_t>(plan.labels_size());
  head.outputs = head.regression ? 1 : plan.task_type() == pb::TASK_TYPE_CLASSIFICATION ? num_labels : 0;
  if (head.outputs == 0) {
    throw Malformed("the plan's task is of the kind " + pb::TaskType_Name(plan.task_type()) + " with " +
                    std::to_string(num_labels) + " labels; this example knows classification and regression alone");
  }
  head.weight.resize(head.outputs * inputs);
  head.bias.resize(head.outputs);
  return head;
}

std::pair<Head, Place> read_head(const std::vector<Component>& model, const std::string& task,
                                 const pb::TrainingPlan& plan) {
  Head head = first_head(plan, 0);
  Place where = place_of(model, task);
  if (where.weight.shape[0] != head.outputs) {
    throw Malformed("the head of " + task + " has " + std::to_string(where.weight.shape[0]) + " outputs, expected " +
                    std::to_string(head.outputs) + " as the plan's task has");
  }
  head.inputs = where.weight.shape[1];
  head.weight = read_floats(model[where.component].data, where.weight);
  head.bias = read_floats(model[where.component].data, where.bias);
  return {std::move(head), std::move(where)};
}

void write_head(std::string& data, const Place& where, const Head& head) {
  write_floats(data, where.weight, head.weight);
  write_floats(data, where.bias, head.bias);
}

Head minus(Head head, const Head& other) {
  add(head.weight, other.weight, -1);
  add(head.bias, other.bias, -1);
  return head;
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

Head trained(Head head, const std::vector<Example>& rows, double rate, const std::optional<Head>& correction) {
  for (int step = 0; step < kNumSteps; ++step) {
    Gradient gradient = gradient_of(head, rows);
    if (correction) {
      add(gradient.weight, correction->weight, 1);
      add(gradient.bias, correction->bias, 1);
    }
    add(head.weight, gradient.weight, -rate);
    add(head.bias, gradient.bias, -rate);
  }
  return head;
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
  return {gradient_of(head, rows).loss, head.regression ? pearson(predictions, labels) : std::optional(accuracy)};
}

std::optional<double> pearson(const std::vector<double>& a, const std::vector<double>& b) {
  if (is_constant(a) || is_constant(b)) {
    return std::nullopt;
  }
  const double mean_a = mean(a), mean_b = mean(b);
  double covariance = 0, variance_a = 0, variance_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = a[i] - mean_a, y = b[i] - mean_b;
    covariance += x * y;
    variance_a += x * x;
    variance_b += y * y;
  }
  return covariance / std::sqrt(variance_a * variance_b);
}

}  // namespace fedmtl_cpp
