// One launch of the attention kernel.
#pragma once

#include "fairy/kernels.h"

namespace fairy {

// Enqueue checked arguments on a stream of the current context.
fairy_status launch_attention(const fairy_attention_args& args, void* stream);

}  // namespace fairy
