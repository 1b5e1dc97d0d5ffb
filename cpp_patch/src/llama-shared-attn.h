#pragma once

// Shared Attention (arXiv 2407.12866): a follower layer reuses the softmax attention weights of an earlier source layer.
// A follower has no Q and K projection and no K cache; its V, its V cache and its output projection are its own.
//
// The source map lives in llama_hparams::shared_attn_offs. It comes from the GGUF key
// {arch}.attention.shared_attn.source_layers or from llama_model_shared_attn_set().

#include "llama.h"

#include "llama-arch.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

struct gguf_context;
struct ggml_context;
struct ggml_tensor;

struct llama_cparams;
struct llama_hparams;
struct llama_layer;
struct llm_graph_context;
struct llm_graph_qkv;

struct llama_memory_i;

class llama_io_write_i;
class llama_io_read_i;

//
// public API
//

#ifdef __cplusplus
extern "C" {
#endif

    // version of the functions below and of the behavior behind them
    LLAMA_API int32_t llama_shared_attn_abi(void);

    // the layer whose attention weights layer il uses: il itself if it computes its own, -1 if there is no layer il
    LLAMA_API int32_t llama_model_shared_attn_source(const struct llama_model * model, int32_t il);

    // set the source map of a model, one entry per layer, while the model has no context
    // on a dense model this tries out spans without an export
    // returns false and changes nothing if the map is not valid for the model, or if a context of the model exists
    LLAMA_API bool llama_model_shared_attn_set(struct llama_model * model, const int32_t * source_layers, size_t n_layers);

#ifdef __cplusplus
}
#endif

//
// source map
//

uint32_t llama_shared_attn_source     (const llama_hparams & hparams, uint32_t il);
bool     llama_shared_attn_is_follower(const llama_hparams & hparams, uint32_t il);
bool     llama_shared_attn_in_span    (const llama_hparams & hparams, uint32_t il); // a follower, or a source with one

// throws std::runtime_error if the GGUF has a source map that cannot be used
void llama_shared_attn_load(llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode, const gguf_context * meta);
void llama_shared_attn_save(const llama_hparams & hparams, llm_arch arch, gguf_context * meta);

// llama_model_loader flags to add for a tensor: the tensors of a follower that only feed Q or K are not loaded
int llama_shared_attn_tensor_flags(const llama_hparams & hparams, const LLM_TN_IMPL & tn);

// true for the QKV tensor of a follower in an architecture that knows no other: the file has its V alone
bool llama_shared_attn_needs_v(const llama_hparams & hparams, const LLM_TN_IMPL & tn, int flags);

// throws std::runtime_error if an adapter changes a tensor that the model lacks because a follower has no use for it
void llama_shared_attn_check_lora(const llama_model & model, const std::string & name);

//
// context
//

struct llama_shared_attn_params {
    // the source map must not change while there are graphs and a KV cache that were made from it
    std::shared_ptr<const void> hold;

    // LLAMA_SHARED_ATTN_HYBRID: the layers outside of spans keep flash attention, although our kernels are faster there, too
    bool hybrid = false;

    // LLAMA_SHARED_ATTN_P_BYTES: memory for the probabilities, UINT64_MAX if it is not set
    uint64_t budget = UINT64_MAX;
};

// throws std::runtime_error if an environment variable has another value than these
llama_shared_attn_params llama_shared_attn_init(const llama_model & model);

//
// graph
//

// what a source layer leaves for its followers while one graph is built
struct llama_shared_attn_src {
    ggml_tensor * q     = nullptr;
    ggml_tensor * k     = nullptr;
    ggml_tensor * kq_b  = nullptr;
    ggml_tensor * sinks = nullptr;
    ggml_tensor * probs = nullptr; // [n_kv, n_tokens, n_head, n_stream], not set where followers recompute them
};

using llama_shared_attn_srcs = std::map<uint32_t, llama_shared_attn_src>;

// the QKV of a follower: V as usual, Q and K are placeholders that never enter the graph
llm_graph_qkv llama_shared_attn_build_qkv(
        const llm_graph_context & g,
        const llama_layer & layer,
              ggml_tensor * cur,
                  int64_t   n_embd_head_q,
                  int64_t   n_head_q,
                  int64_t   n_embd_head_k,
                  int64_t   n_head_k,
                  int64_t   n_embd_head_v,
                  int64_t   n_head_v,
                      int   il,
                     bool   reshape);

// a source leaves its Q and K side here, a follower takes it
void llama_shared_attn_exchange_qk(
        const llm_graph_context & g,
              ggml_tensor * & q,
              ggml_tensor * & k,
              ggml_tensor * & kq_b,
              ggml_tensor * & sinks,
                      int     il);

// a layer that reuses probabilities, or leaves some to be reused, does without flash attention
// decided anew for each graph: a ubatch that must not be split may be too large for the budget
bool llama_shared_attn_reuses(const llm_graph_context & g, int il);

// a source leaves its probabilities here, a follower gets those of its source
// probs is the softmax of the layer; where the kernel does better, it stays out of the graph
ggml_tensor * llama_shared_attn_exchange_probs(
        const llm_graph_context & g,
              ggml_tensor * probs,
              ggml_tensor * q,
              ggml_tensor * k,
              ggml_tensor * v,
              ggml_tensor * kq_b,
              ggml_tensor * kq_mask,
              ggml_tensor * sinks,
                    float   kq_scale,
                      int   il);

// the product of the probabilities with V, whose rows in the cache are those of flash attention if the layer reuses
ggml_tensor * llama_shared_attn_build_kqv(const llm_graph_context & g, ggml_tensor * v, ggml_tensor * probs, int il);

//
// KV cache
//

// how a KV cache serves shared attention while flash attention is on
struct llama_shared_attn_kv {
    // followers reuse the probabilities of their source; else they compute them again, with flash attention
    bool reuse = false;

    // the layers outside of spans do without flash attention, too
    bool reuse_all = false;

    // attention is over a multiple of so many positions; the probabilities of empty ones would be computed, too
    uint32_t n_kv_pad = 256;

    // the largest ubatch whose probabilities fit into their memory budget; followers recompute those of a larger one
    uint32_t n_ubatch_max = UINT32_MAX;
};

using llama_shared_attn_filter = std::function<bool(int32_t il)>;

// n_cells is the size of one stream
// the budget of the probabilities is what the followers save of the K cache, so that a model never takes more memory than
// without shared attention; the user may set another one, for all caches of a context together
// throws std::runtime_error as llama_shared_attn_init does
llama_shared_attn_kv llama_shared_attn_init_kv(
        const llama_model   & model,
        const llama_hparams & hparams,
                  ggml_type   type_k,
                  ggml_type   type_v,
                       bool   v_trans,
                       bool   offload,
                   uint32_t   n_cells,
                   uint32_t   n_stream,
        const llama_shared_attn_filter & filter);

// the size of the ubatches that a batch is split into
// not smaller than without shared attention where all tokens must be in one: without a causal mask, in training, and where
// they are pooled into one embedding per sequence, as each ubatch is pooled by itself
uint32_t llama_shared_attn_n_ubatch(const llama_memory_i * memory, const llama_cparams & cparams);

//
// state files
//

// a layer without K cache says so, or a dense state could be read as the state of an SA model
void llama_shared_attn_state_write_no_k(llama_io_write_i & io);
bool llama_shared_attn_state_read_no_k (llama_io_read_i  & io, uint32_t il);
