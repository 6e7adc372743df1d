#include "scaffold.h"

#include <utility>

#include "encodings.h"

namespace fedmtl_cpp {
namespace {

const std::string kPrefix = "control:";

std::vector<float> elements(const std::string& data) {
  std::vector<float> values(data.size() / 4);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = load_float(&data[4 * i]);
  }
  return values;
}

std::vector<double> part(const std::vector<float>& values, const Tensor& tensor) {
  const auto first = values.begin() + static_cast<std::ptrdiff_t>(tensor.offset / 4);
  return {first, first + static_cast<std::ptrdiff_t>(tensor.elements)};
}

}  // namespace

Parted split(const std::vector<Component>& received) {
  Parted slice;
  for (const Component& component : received) {
    const std::string& scope = component.layout.scope;
    if (scope.rfind(kPrefix, 0) == 0) {
      slice.controls[scope.substr(kPrefix.size())] = elements(component.data);
    } else {
      slice.model.push_back(component);
    }
  }
  return slice;
}

Variates Variates::begin(std::uint32_t since) const { return round < since ? Variates{} : *this; }

Vectors Variates::corrections(const Parted& slice) const {
  Vectors corrections;
  if (slice.controls.empty()) {
    return corrections;
  }
  for (const Component& component : slice.model) {
    const std::string& scope = component.layout.scope;
    const auto server = slice.controls.find(scope), mine = own.find(scope);
    std::vector<float> correction = server == slice.controls.end() ? std::vector<float>{} : server->second;
    const bool fits = correction.size() == component.layout.elements &&
                      (mine == own.end() || mine->second.size() == correction.size());
    if (!component.layout.is_float32() || !fits) {  // this example can't compute with other dtypes
      throw Malformed("expected " + scope + " in float32, and " + kPrefix + scope + " with as many numbers");
    }
    for (std::size_t i = 0; mine != own.end() && i < correction.size(); ++i) {
      correction[i] -= mine->second[i];
    }
    corrections[scope] = std::move(correction);
  }
  return corrections;
}

Variates Variates::following(std::uint32_t of_round, const Vectors& corrections, const std::vector<Component>& sent,
                             double rate_sum) const {
  if (rate_sum == 0) {
    return *this;
  }
  Variates next{of_round, {}};
  for (const Component& component : sent) {
    const std::vector<float>& correction = corrections.at(component.layout.scope);
    std::vector<float> values = elements(component.data);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(-static_cast<double>(correction[i]) - values[i] / rate_sum);
    }
    next.own[component.layout.scope] = std::move(values);
  }
  return next;
}

void descend(std::string& delta, const std::vector<float>& correction, double rate_sum) {
  for (std::size_t i = 0; i < correction.size(); ++i) {
    store_float(&delta[4 * i], static_cast<float>(-rate_sum * correction[i]));
  }
}

Head head_correction(const std::vector<float>& correction, const Place& where) {
  Head head;
  head.weight = part(correction, where.weight);
  head.bias = part(correction, where.bias);
  return head;
}

}  // namespace fedmtl_cpp
