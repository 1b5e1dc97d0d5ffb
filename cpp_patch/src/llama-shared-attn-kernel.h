#pragma once

// The attention weights of a source layer on the CPU, written once, in the type that the product with V wants.
//
// Equivalent to a cast of ggml_soft_max_ext(ggml_mul_mat(k, q)), which needs twice the memory of f16 weights for the f32
// scores and passes through it four times. Here a tile of scores is finished before it leaves the cache.

#include "ggml.h"

// compiled in
bool llama_shared_attn_kernel_available(void);

// false where the operators do as well, or the kernel does not know the types
bool llama_shared_attn_kernel_supported(const ggml_tensor * q, const ggml_tensor * k, ggml_type type);

// q:     [n_embd_head, n_tokens, n_head,    n_stream] f32
// k:     [n_embd_head, n_kv,     n_head_kv, n_stream] f32, f16 or quantized
// mask:  [n_kv,        n_tokens, 1,         n_stream] f16 or f32
// sinks: [n_head] f32, or null
// the rest as in ggml_flash_attn_ext
// returns the weights, [n_kv, n_tokens, n_head, n_stream] of the given type: f16 or f32
ggml_tensor * llama_shared_attn_kernel(
        ggml_context * ctx,
        ggml_tensor  * q,
        ggml_tensor  * k,
        ggml_tensor  * mask,
        ggml_tensor  * sinks,
               float   scale,
               float   max_bias,
               float   softcap,
           ggml_type   type);
