/* libfairy_kernels: attention of every frame on its own tokens and on tokens of other frames, without Python.
 *
 *     out[g, f] = softmax(q[g, f] . [k0[g, f or 0] ; k1 ... ]^T / sqrt(head_dim)) . [v0[g, f or 0] ; v1 ... ]
 *
 * in one launch, the keys of up to five sources read through their own pointers and strides. Usually source 0 holds
 * the frame's own keys and values and the others those of anchor frames, shared by all frames of a group (frame stride
 * 0). Source of the formula: Fairy, arXiv 2312.13834, section 5.1.
 *
 * The compiled kernels are inside the library. It loads without a GPU and without NVIDIA's driver: libcuda.so.1 is
 * opened by the first call that needs it. All functions may be called from any number of threads at once, but that
 * fairy_kernels_unload must not run beside other calls in the same context. None throws. Plain C99.
 */
#ifndef FAIRY_KERNELS_H
#define FAIRY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FAIRY_API __attribute__((visibility("default")))
#else
#define FAIRY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FAIRY_MAX_SOURCES 5

/* What a call came to. 1 to 99: the arguments; 100 and above: the machine. Numbers never change their meaning. */
typedef enum fairy_status {
  FAIRY_SUCCESS = 0,
  FAIRY_ERROR_STRUCT_SIZE = 1,  /* struct_size is not the size of any version of the struct */
  FAIRY_ERROR_NULL_POINTER = 2, /* a required pointer is null */
  FAIRY_ERROR_DTYPE = 3,        /* dtype is no fairy_dtype */
  FAIRY_ERROR_HEAD_DIM = 4,     /* no kernel of this library has this head dimension in this type */
  FAIRY_ERROR_SIZE = 5,         /* a size is below 1, or too large for the kernel's 32-bit offsets or the grid */
  FAIRY_ERROR_SOURCES = 6,      /* source_count is not 1 ... FAIRY_MAX_SOURCES */
  FAIRY_ERROR_ALIGNMENT = 7,    /* a pointer does not lie on 16 bytes */
  FAIRY_ERROR_STRIDE = 8,       /* a stride is negative, no multiple of 8 elements, or makes rows of out overlap */
  FAIRY_ERROR_INDEX = 9,        /* there is no kernel of this index */
  FAIRY_ERROR_NO_DRIVER = 100,  /* libcuda.so.1 cannot be loaded or is older than CUDA 11 */
  FAIRY_ERROR_NO_DEVICE = 101,  /* the driver sees no GPU */
  FAIRY_ERROR_NO_CONTEXT = 102, /* the calling thread has no current CUDA context */
  FAIRY_ERROR_NO_KERNEL = 103,  /* no embedded kernel runs on this GPU */
  FAIRY_ERROR_DRIVER = 104,     /* a call of the driver failed; fairy_last_error names it */
  FAIRY_ERROR_OUT_OF_MEMORY = 105,
  FAIRY_ERROR_INTERNAL = 106
} fairy_status;

/* Type of q, of all keys and values, and of out. 0 is none, so that a zeroed struct is refused. */
typedef enum fairy_dtype { FAIRY_FLOAT16 = 1, FAIRY_BFLOAT16 = 2 } fairy_dtype;

/* Distances in elements (not bytes); each at least 0 and a multiple of 8. Channels (head, then head_dim) are
 * contiguous: channel c of token t of frame f of group g lies at g*group + f*frame + t*token + c. */
typedef struct fairy_strides {
  int64_t group;
  int64_t frame; /* 0: all frames of the group share one block */
  int64_t token;
} fairy_strides;

/* Keys and values [groups, frames or 1, length, heads*head_dim] that every frame attends to. */
typedef struct fairy_source {
  const void* k; /* device memory, on 16 bytes */
  const void* v;
  int64_t length; /* tokens, at least 1 */
  fairy_strides k_strides;
  fairy_strides v_strides;
} fairy_source;

/* One call. Zero it (`= {0}`), set struct_size and fill in the rest; fields are only ever added at the end. */
typedef struct fairy_attention_args {
  size_t struct_size; /* sizeof(fairy_attention_args) */
  int32_t dtype;      /* a fairy_dtype */
  int32_t groups;     /* e.g. guidance branches; every size is at least 1 */
  int32_t frames;
  int32_t tokens; /* queries of a frame */
  int32_t heads;
  int32_t head_dim; /* 40, 64, 80, 128 or 160, as built: fairy_kernels_get */
  const void* q;    /* [groups, frames, tokens, heads*head_dim], device memory, on 16 bytes */
  fairy_strides q_strides;
  void* out; /* shape of q; must not overlap q or a source */
  fairy_strides out_strides;
  int32_t source_count; /* 1 ... FAIRY_MAX_SOURCES */
  fairy_source sources[FAIRY_MAX_SOURCES];
} fairy_attention_args;

/* Enqueue one launch on `stream` (a CUstream or cudaStream_t of the current context; NULL = its default stream) and
 * return without waiting. The first call of a type and head dimension in a context loads a module, which must not
 * happen while a CUDA graph is captured: call fairy_kernels_load before.
 * Limits: (tokens - 1) * token stride and (length - 1) * token stride below 2^31; groups * frames * heads *
 * ceil(tokens / 64) below 2^31. An error leaves out untouched. */
FAIRY_API fairy_status fairy_anchor_attention(const fairy_attention_args* args, void* stream);

/* Load the kernel for a type and head dimension into the current context, where it is not loaded yet. */
FAIRY_API fairy_status fairy_kernels_load(int32_t dtype, int32_t head_dim);

/* Unload what this library holds in the current context. Call it before that context is destroyed or reset, when
 * no launch is pending and no other thread is in a call of this library in the context. */
FAIRY_API fairy_status fairy_kernels_unload(void);

/* One embedded kernel. Set struct_size before asking. */
typedef struct fairy_kernel_info {
  size_t struct_size; /* sizeof(fairy_kernel_info) */
  const char* name;   /* e.g. "anchor_attention_strided_d40_fp16_sm90"; lives as long as the library */
  int32_t dtype;      /* a fairy_dtype */
  int32_t head_dim;
  int32_t major; /* compute capability it was compiled for */
  int32_t minor;
  int32_t only_exact; /* 1: runs on that capability alone; 0: on later minor ones too (8.0 on 8.7) */
  int32_t block;      /* queries of one program */
  int32_t threads;    /* of one program */
  int32_t shared_bytes;
  size_t binary_bytes;
} fairy_kernel_info;

/* Number of embedded kernels. */
FAIRY_API size_t fairy_kernels_count(void);

/* Describe the kernel of index 0 ... fairy_kernels_count() - 1. Needs no GPU. */
FAIRY_API fairy_status fairy_kernels_get(size_t index, fairy_kernel_info* info);

/* 1 where a GPU of this compute capability would be served, else 0. Needs no GPU. */
FAIRY_API int fairy_kernels_available(int32_t dtype, int32_t head_dim, int32_t major, int32_t minor);

/* Version of the library and of the compiler of its kernels, e.g. "0.1.0 (Triton 3.7.1)". */
FAIRY_API const char* fairy_kernels_version(void);

/* The name of a status, e.g. "FAIRY_ERROR_NO_DRIVER"; "unknown fairy_status" for other numbers. */
FAIRY_API const char* fairy_status_string(int32_t status);

/* One sentence on the last error of the calling thread: the value and the remedy. Empty before the first error;
 * valid until this thread's next error. Success leaves it as it is. */
FAIRY_API const char* fairy_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* FAIRY_KERNELS_H */
