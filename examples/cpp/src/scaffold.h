// A client's part of SCAFFOLD: docs/wire.md, "Control variates". No socket here.
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

// A slice, parted into the model's components, which an update has too, and the server's variates by the scope that
// each is for.
struct Parted {
  std::vector<Component> model;
  Vectors controls;
};

Parted split(const std::vector<Component>& received);

// The client's own control variates: the mean gradient of its last training.
struct Variates {
  // The base_round of the update that they are of; 0 for none.
  std::uint32_t round = 0;
  // By the scope that each is for. What isn't there is 0.
  Vectors own;

  // What a round begins with. Variates from before the server's began are void.
  Variates begin(std::uint32_t since) const;

  // What is added to the gradients: the server's variates minus the client's own. Empty if the server has none. Throws
  // Malformed if the numbers aren't as many as the model's, or those aren't float32.
  Vectors corrections(const Parted& slice) const;

  // The variates once the update of a round counts: own - server's - delta / rate_sum, of the deltas as they are sent.
  // With a sum of 0 the steps went nowhere, and tell nothing.
  Variates following(std::uint32_t of_round, const Vectors& corrections, const std::vector<Component>& sent,
                     double rate_sum) const;
};

// Writes how far the steps go in what the loss doesn't see, which is the encoder here: its gradient is 0, and the
// correction is added to it all the same.
void descend(std::string& delta, const std::vector<float>& correction, double rate_sum);

// The head's part of a correction.
Head head_correction(const std::vector<float>& correction, const Place& where);

}  // namespace fedmtl_cpp
