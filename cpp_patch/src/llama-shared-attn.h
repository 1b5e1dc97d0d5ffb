#pragma once

// Shared Attention (arXiv 2407.12866): a follower reuses the softmax attention weights of a source in an earlier layer.
// A follower has no Q and K projection and no K cache; its V, its V cache and its output projection are its own.
//
// Each KV group (a KV head and its query heads) does one of three: its heads compute their own weights, they follow heads
// of one earlier layer, or they are dropped, with their Q, K, V and O. The paper's unit, the layer, is the case in which
// all groups of a layer do the same.
//
// The map is in llama_hparams::shared_attn. It comes from the GGUF key {arch}.attention.shared_attn.source_layers or
// {arch}.attention.shared_attn.source_heads, or from llama_model_shared_attn_set() or _set_heads().

#include "llama.h"

#include "llama-arch.h"

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

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

    // the layer whose attention weights all heads of layer il use: il itself if they compute their own
    // -1 if they do not all do the same, or if there is no layer il
    LLAMA_API int32_t llama_model_shared_attn_source(const struct llama_model * model, int32_t il);

    // the head whose attention weights query head i of layer il uses, as n_head * layer + head: itself if it computes its own
    // -1 if the head is dropped, or if there is none
    LLAMA_API int32_t llama_model_shared_attn_source_head(const struct llama_model * model, int32_t il, int32_t i);

    // set the source map of a model, one entry per layer, while the model has no context
    // on a dense model this tries out spans without an export
    // returns false and changes nothing if the map is not valid for the model, or if a context of the model exists
    LLAMA_API bool llama_model_shared_attn_set(struct llama_model * model, const int32_t * source_layers, size_t n_layers);

    // the same for each query head, n_layer * n_head entries, as llama_model_shared_attn_source_head returns them
    // the model must have all Q, K, V and O; nothing is saved of the weights, and of the caches what whole layers save
    LLAMA_API bool llama_model_shared_attn_set_heads(struct llama_model * model, const int32_t * source_heads, size_t n);

#ifdef __cplusplus
}
#endif

//
// map
//

// query heads of a layer, one after the other, whose weights are those of heads of one layer, one after the other
// either whole KV groups, or within one KV group here and there: so they are one product with views
struct llama_shared_attn_run {
    uint32_t head;     // the first one
    uint32_t n_head;
    int32_t  il_src;   // the layer that computes the weights, maybe this one; -1 if the heads are dropped
    uint32_t head_src; // the first head there
};

struct llama_shared_attn_layer {
    // the heads that its tensors and caches have
    uint32_t n_head_q;
    uint32_t n_head_k;
    uint32_t n_head_v;

    uint32_t last;    // the last layer that uses its weights
    bool     in_span; // it uses the weights of another layer, or another uses its

    std::vector<llama_shared_attn_run> runs;
};

struct llama_shared_attn_map {
    // the tensors of a layer have the heads that compute their weights, then those that follow, and no others
    // not so in a dense model that tries a map out
    bool compact;

    std::vector<int32_t> source_heads; // n_layer x n_head
    std::vector<llama_shared_attn_layer> layers;
};

// the KV heads whose K or V a layer has
uint32_t llama_shared_attn_n_head_k(const llama_hparams & hparams, uint32_t il);
uint32_t llama_shared_attn_n_head_v(const llama_hparams & hparams, uint32_t il);
uint32_t llama_shared_attn_n_embd_k(const llama_hparams & hparams, uint32_t il);
uint32_t llama_shared_attn_n_embd_v(const llama_hparams & hparams, uint32_t il);

// true if no head of the layer computes its own weights
bool llama_shared_attn_lacks_qk(const llama_hparams & hparams, uint32_t il);

// null if the GGUF has no map
// throws std::runtime_error if it has one that cannot be used
std::shared_ptr<const llama_shared_attn_map> llama_shared_attn_load(
        const llama_hparams & hparams, llm_arch arch, llama_split_mode split_mode, const gguf_context * meta);
void llama_shared_attn_save(const llama_hparams & hparams, llm_arch arch, gguf_context * meta);

// llama_model_loader flags to add for a tensor: those that no head of the layer needs are not loaded
int llama_shared_attn_tensor_flags(const llama_hparams & hparams, const LLM_TN_IMPL & tn);

// the shape of a tensor of up to two dimensions, without the heads that the layer lacks
std::array<int64_t, 2> llama_shared_attn_shape(const llama_hparams & hparams, const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne);

// true for the QKV tensor of a layer without Q and K in an architecture that knows no other: the file has its V alone
bool llama_shared_attn_needs_v(const llama_hparams & hparams, const LLM_TN_IMPL & tn, int flags);

// throws std::runtime_error if an adapter changes a tensor that the model lacks because no head has a use for it
void llama_shared_attn_check_lora(const llama_model & model, const std::string & name);

// more nodes of a graph than those of the dense model
uint32_t llama_shared_attn_n_nodes(const llama_hparams & hparams);

//
// context
//

struct llama_shared_attn_params {
    // the source map must not change while there are graphs and a KV cache that were made from it
    std::shared_ptr<const void> hold;

    // LLAMA_SHARED_ATTN_HYBRID: the layers outside of spans keep flash attention, although our kernels are faster there, too
    bool hybrid = false;

    // LLAMA_SHARED_ATTN_DENSE: our kernels instead of flash attention in a model without a map, too
    bool dense = false;

    // LLAMA_SHARED_ATTN_P_BYTES: memory for the probabilities, UINT64_MAX if it is not set
    uint64_t budget = UINT64_MAX;
};

// throws std::runtime_error if an environment variable has another value than these
llama_shared_attn_params llama_shared_attn_init(const llama_model & model);

//
// graph
//

// what a layer leaves for its followers while one graph is built
struct llama_shared_attn_src {
    ggml_tensor * q     = nullptr;
    ggml_tensor * k     = nullptr;
    ggml_tensor * kq_b  = nullptr;
    ggml_tensor * sinks = nullptr;
    ggml_tensor * probs = nullptr; // [n_kv, n_tokens, n_head, n_stream], not set where followers recompute them
};

struct llama_shared_attn_graph {
    std::map<uint32_t, llama_shared_attn_src> srcs; // by layer

    const llama_shared_attn_run * run = nullptr; // what is being built; null where a layer is built as a whole
};

// the heads that the QKV of a layer has
void llama_shared_attn_n_heads(const llama_hparams & hparams, int il, int64_t & n_head_q, int64_t & n_head_k, int64_t & n_head_v);

// the QKV of a layer without Q and K: V as usual, the others are placeholders that never enter the graph
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

// what a layer lacks is replaced by something of an earlier layer, or the placeholders would enter the graph
void llama_shared_attn_replace_qkv(const llm_graph_context & g, ggml_tensor * & q, ggml_tensor * & k, ggml_tensor * & v, int il);

// true if the attention of a layer is built by the next function, run by run
bool llama_shared_attn_has_runs(const llm_graph_context & g, int il);

// as llm_graph_context::build_attn_mha
ggml_tensor * llama_shared_attn_build_mha(
        const llm_graph_context & g,
              ggml_tensor * q,
              ggml_tensor * k,
              ggml_tensor * v,
              ggml_tensor * kq_b,
              ggml_tensor * kq_mask,
              ggml_tensor * sinks,
              ggml_tensor * v_mla,
                  int64_t   n_kv_max,
                    float   kq_scale,
                      int   il);

// true if our kernels compute a layer instead of flash attention
// in a span that is so where the probabilities are reused, which is decided anew for each graph: a ubatch that must not be
// split may be too large for their budget
bool llama_shared_attn_computes(const llm_graph_context & g, int il);

// a layer leaves its probabilities here, a run that follows gets those of its source
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

    // our kernels compute the layers outside of spans, too, instead of flash attention
    bool kernels = false;

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
