/* The header is plain C99, and the library is called from C. */
#include <fairy/kernels.h>
#include <stdio.h>

int main(void) {
  fairy_attention_args args = {0};
  args.struct_size = sizeof(args);
  puts(fairy_kernels_version());
  return fairy_anchor_attention(&args, NULL) == FAIRY_ERROR_DTYPE ? 0 : 1;
}
