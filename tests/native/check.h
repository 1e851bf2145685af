// A check that says what it compared; the program goes on and ends with the number of failures.
#pragma once

#include <iostream>

inline int failures = 0;

#define CHECK(condition)                                                               \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      ++failures;                                                                      \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " << #condition << " is false\n"; \
    }                                                                                  \
  } while (false)

#define CHECK_EQUAL(left, right)                                                                                   \
  do {                                                                                                             \
    const auto left_value = (left);                                                                                \
    const auto right_value = (right);                                                                              \
    if (!(left_value == right_value)) {                                                                            \
      ++failures;                                                                                                  \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " << #left << " is " << left_value << ", not " << right_value \
                << "\n";                                                                                           \
    }                                                                                                              \
  } while (false)
