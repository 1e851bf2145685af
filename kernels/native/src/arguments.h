// What a caller must keep to, checked before the driver is touched.
#pragma once

#include "fairy/kernels.h"

namespace fairy {

// FAIRY_SUCCESS, or the first thing that is wrong, with a message.
fairy_status check_arguments(const fairy_attention_args* args) noexcept;

// FAIRY_SUCCESS, FAIRY_ERROR_DTYPE or FAIRY_ERROR_HEAD_DIM.
fairy_status check_kind(int32_t dtype, int32_t head_dim) noexcept;

}  // namespace fairy
