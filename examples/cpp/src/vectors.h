// This client's reading and writing against the golden bytes.
#pragma once

#include <cstddef>
#include <string>

namespace fedmtl_cpp {

// Checks all vectors of a folder. Gives their number, or throws with what differs.
std::size_t check_vectors(const std::string& folder);

}  // namespace fedmtl_cpp
