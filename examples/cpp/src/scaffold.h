// The client's part of SCAFFOLD, without a socket: docs/wire.md, "Control variates".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "head.h"
#include "wire.h"

namespace fedmtl_cpp {

// By scope, a number for each element of the component.
using Vectors = std::map<std::string, std::vector<float>>;

// A slice, split into the model's components, which an update has too, and the server's variates by the scope of their
// component.
struct Parted {
  std::vector<Component> model;
  Vectors controls;
};

Parted split(const std::vector<Component>& received);

// The client's own control variates: the mean gradient of its last training.
struct Variates {
  // The base_round of the update that the variates come from; 0 for none.
  std::uint32_t round = 0;
  // The variates by the scope of their component. Missing variates are 0.
  Vectors own;

  // The variates at the beginning of a round. Variates from before the server's began are void.
  Variates begin(std::uint32_t since) const;

  // The correction of the gradients: the server's variates minus the client's own. Empty if the server has none. Throws
  // Malformed if the variates don't have as many numbers as the model, or if the model isn't float32.
  Vectors corrections(const Parted& slice) const;

  // The variates for when the update of a round counts: own - server's - delta / rate_sum, with the deltas as sent. With
  // a sum of 0 the variates don't change.
  Variates following(std::uint32_t of_round, const Vectors& corrections, const std::vector<Component>& sent,
                     double rate_sum) const;
};

// Writes the steps of parameters that the loss doesn't use, here the encoder: their gradient is 0, and the correction is
// added to it.
void descend(std::string& delta, const std::vector<float>& correction, double rate_sum);

// The head's part of the correction.
Head head_correction(const std::vector<float>& correction, const Place& where);

}  // namespace fedmtl_cpp
