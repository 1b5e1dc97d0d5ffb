#pragma once

// Attention on the CPU in two steps, so that layers can share the first: the weights of a source layer, and their product
// with V. Together they do what ggml_flash_attn_ext does, with the same K and V caches, and what the plain operators do
// without their f32 scores and transposed V. Where no other layer needs the weights, both steps are one.

#include "ggml.h"

// compiled in
bool llama_shared_attn_kernel_available(void);

// q:     [n_embd_head, n_tokens, n_head,    n_stream] f32
// k:     [n_embd_head, n_kv,     n_head_kv, n_stream] any type that ggml can convert to f32
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

// probs: [n_kv,          n_tokens, n_head,    n_stream] f16 or f32
// v:     [n_embd_head_v, n_kv,     n_head_kv, n_stream] any type that ggml can convert to f32
// returns their product, [n_embd_head_v, n_tokens, n_head, n_stream] f32
ggml_tensor * llama_shared_attn_kernel_pv(ggml_context * ctx, ggml_tensor * probs, ggml_tensor * v);

// true if the next function can take the place of the one above: probs are what the kernel returned
bool llama_shared_attn_kernel_fuses(const ggml_tensor * probs);

// both steps at once: the weights are not kept, and probs does not enter the graph
ggml_tensor * llama_shared_attn_kernel_fused(ggml_context * ctx, ggml_tensor * probs, ggml_tensor * v);
