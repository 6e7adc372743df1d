// Checks this client's reading and writing against the golden vectors.
#pragma once

#include <cstddef>
#include <string>

namespace fedmtl_cpp {

// Checks all vectors of a folder. Returns their number, or throws with the difference.
std::size_t check_vectors(const std::string& folder);

}  // namespace fedmtl_cpp
