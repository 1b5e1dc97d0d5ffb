#include "llama-shared-attn.h"

#include "llama-arch.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"
#include "llama-model-loader.h"

#include "gguf.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#define SHARED_ATTN_ABI            1
#define SHARED_ATTN_FORMAT_VERSION 1

static const char * SHARED_ATTN_KEY_FORMAT_VERSION = "shareatt.format_version";

// architectures whose attention is known to pass through the hooks
static const std::vector<llm_arch> shared_attn_archs = {
    LLM_ARCH_LLAMA,
};

// what only feeds the Q or the K of a layer
static const std::vector<llm_tensor> shared_attn_qk_tensors = {
    LLM_TENSOR_ATTN_Q,
    LLM_TENSOR_ATTN_K,
    LLM_TENSOR_ATTN_Q_NORM,
    LLM_TENSOR_ATTN_K_NORM,
};

static std::string shared_attn_key(llm_arch arch) {
    return std::string(llm_arch_name(arch)) + ".attention.shared_attn.source_layers";
}

//
// source map
//

uint32_t llama_shared_attn_source(const llama_hparams & hparams, uint32_t il) {
    return il - hparams.shared_attn_offs[il];
}

bool llama_shared_attn_is_follower(const llama_hparams & hparams, uint32_t il) {
    return hparams.shared_attn_offs[il] > 0;
}

static bool shared_attn_any(const llama_hparams & hparams) {
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (llama_shared_attn_is_follower(hparams, il)) {
            return true;
        }
    }

    return false;
}

// check the whole map before any of it is stored
static void shared_attn_set(llama_hparams & hparams, llm_arch arch, const int32_t * source_layers, size_t n) {
    const std::string key = shared_attn_key(arch);

    if (std::find(shared_attn_archs.begin(), shared_attn_archs.end(), arch) == shared_attn_archs.end()) {
        throw std::runtime_error(format("%s: shared attention is not supported for this architecture", key.c_str()));
    }

    if (n != hparams.n_layer_all || n > LLAMA_MAX_LAYERS) {
        throw std::runtime_error(format("%s: has %zu layers, the model has %u", key.c_str(), n, hparams.n_layer_all));
    }

    for (uint32_t il = 0; il < n; ++il) {
        const int32_t src = source_layers[il];

        if (src < 0 || (uint32_t) src > il) {
            throw std::runtime_error(format("%s: layer %u: source %d is not a layer at or before it", key.c_str(), il, src));
        }

        if (source_layers[src] != src) {
            throw std::runtime_error(format("%s: layer %u: source %d does not compute its own attention weights", key.c_str(), il, src));
        }

        if (hparams.n_head(src)        != hparams.n_head(il)        || hparams.n_head_kv(src)     != hparams.n_head_kv(il) ||
            hparams.n_embd_head_k(src) != hparams.n_embd_head_k(il) || hparams.n_embd_head_v(src) != hparams.n_embd_head_v(il)) {
            throw std::runtime_error(format("%s: layer %u: source %d has other attention heads", key.c_str(), il, src));
        }

        if (hparams.is_swa(src) != hparams.is_swa(il)) {
            throw std::runtime_error(format("%s: layer %u: source %d has another attention window", key.c_str(), il, src));
        }
    }

    for (uint32_t il = 0; il < n; ++il) {
        hparams.shared_attn_offs[il] = il - source_layers[il];
    }
}

void llama_shared_attn_load(llama_hparams & hparams, llm_arch arch, const gguf_context * meta) {
    const int64_t kid_version = gguf_find_key(meta, SHARED_ATTN_KEY_FORMAT_VERSION);
    if (kid_version >= 0) {
        if (gguf_get_kv_type(meta, kid_version) != GGUF_TYPE_UINT32) {
            throw std::runtime_error(format("%s: must be a u32", SHARED_ATTN_KEY_FORMAT_VERSION));
        }

        const uint32_t version = gguf_get_val_u32(meta, kid_version);
        if (version > SHARED_ATTN_FORMAT_VERSION) {
            throw std::runtime_error(format("%s: is %u, this runtime knows up to %d", SHARED_ATTN_KEY_FORMAT_VERSION, version, SHARED_ATTN_FORMAT_VERSION));
        }
    }

    const std::string key = shared_attn_key(arch);

    const int64_t kid = gguf_find_key(meta, key.c_str());
    if (kid < 0) {
        return;
    }

    if (gguf_get_kv_type(meta, kid) != GGUF_TYPE_ARRAY || gguf_get_arr_type(meta, kid) != GGUF_TYPE_INT32) {
        throw std::runtime_error(format("%s: must be an array of i32", key.c_str()));
    }

    shared_attn_set(hparams, arch, (const int32_t *) gguf_get_arr_data(meta, kid), gguf_get_arr_n(meta, kid));

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (llama_shared_attn_is_follower(hparams, il)) {
            LLAMA_LOG_INFO("%s: layer %3u reuses the attention weights of layer %3u\n", __func__, il, llama_shared_attn_source(hparams, il));
        }
    }
}

void llama_shared_attn_save(const llama_hparams & hparams, llm_arch arch, gguf_context * meta) {
    if (!shared_attn_any(hparams)) {
        return;
    }

    std::vector<int32_t> source_layers(hparams.n_layer_all);
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        source_layers[il] = llama_shared_attn_source(hparams, il);
    }

    gguf_set_arr_data(meta, shared_attn_key(arch).c_str(), GGUF_TYPE_INT32, source_layers.data(), source_layers.size());
    gguf_set_val_u32 (meta, SHARED_ATTN_KEY_FORMAT_VERSION, SHARED_ATTN_FORMAT_VERSION);
}

int llama_shared_attn_tensor_flags(const llama_hparams & hparams, const LLM_TN_IMPL & tn) {
    if (tn.bid < 0 || !llama_shared_attn_is_follower(hparams, tn.bid)) {
        return 0;
    }

    if (std::find(shared_attn_qk_tensors.begin(), shared_attn_qk_tensors.end(), tn.tensor) == shared_attn_qk_tensors.end()) {
        return 0;
    }

    return llama_model_loader::TENSOR_NOT_REQUIRED | llama_model_loader::TENSOR_SKIP | llama_model_loader::TENSOR_SKIP_IF_VIRTUAL;
}

//
// graph
//

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
                     bool   reshape) {
    ggml_tensor * q = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_q*n_head_q, g.n_tokens);
    ggml_tensor * k = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n_embd_head_k*n_head_k, g.n_tokens);
    ggml_tensor * v = g.build_lora_mm(layer.wv, cur, layer.wv_s);

    if (layer.wv_b) {
        v = ggml_add(g.ctx0, v, layer.wv_b);
    }

    if (reshape) {
        if (g.hparams.f_clamp_kqv > 0.0f) {
            v = ggml_clamp(g.ctx0, v, -g.hparams.f_clamp_kqv, g.hparams.f_clamp_kqv);
        }

        q = ggml_reshape_3d(g.ctx0, q, n_embd_head_q, n_head_q, g.n_tokens);
        k = ggml_reshape_3d(g.ctx0, k, n_embd_head_k, n_head_k, g.n_tokens);
        v = ggml_reshape_3d(g.ctx0, v, n_embd_head_v, n_head_v, g.n_tokens);
        g.cb(v, "Vcur", il);
    }

    return { q, k, v };
}

void llama_shared_attn_exchange_qk(
        const llm_graph_context & g,
              ggml_tensor * & q,
              ggml_tensor * & k,
              ggml_tensor * & kq_b,
              ggml_tensor * & sinks,
                      int     il) {
    auto & src = g.shared_attn[llama_shared_attn_source(g.hparams, il)];

    if (llama_shared_attn_is_follower(g.hparams, il)) {
        q     = src.q;
        k     = src.k;
        kq_b  = src.kq_b;
        sinks = src.sinks;
    } else {
        src.q     = q;
        src.k     = k;
        src.kq_b  = kq_b;
        src.sinks = sinks;
    }
}

ggml_tensor * llama_shared_attn_exchange_probs(const llm_graph_context & g, ggml_tensor * probs, int il) {
    auto & src = g.shared_attn[llama_shared_attn_source(g.hparams, il)];

    if (!llama_shared_attn_is_follower(g.hparams, il)) {
        src.probs = probs;
    }

    return src.probs;
}

//
// state files
//

void llama_shared_attn_state_write_no_k(llama_io_write_i & io) {
    const int32_t  k_type_i   = -1;
    const uint64_t k_size_row =  0;

    io.write(&k_type_i,   sizeof(k_type_i));
    io.write(&k_size_row, sizeof(k_size_row));
}

bool llama_shared_attn_state_read_no_k(llama_io_read_i & io, uint32_t il) {
    int32_t  k_type_i;
    uint64_t k_size_row;

    io.read(&k_type_i,   sizeof(k_type_i));
    io.read(&k_size_row, sizeof(k_size_row));

    if (k_type_i != -1 || k_size_row != 0) {
        LLAMA_LOG_ERROR("%s: the state has a K cache for layer %u, this model has none there\n", __func__, il);
        return false;
    }

    return true;
}

//
// public API
//

int32_t llama_shared_attn_abi(void) {
    return SHARED_ATTN_ABI;
}

int32_t llama_model_shared_attn_source(const llama_model * model, int32_t il) {
    if (il < 0 || (uint32_t) il >= model->hparams.n_layer_all) {
        return -1;
    }

    return llama_shared_attn_source(model->hparams, il);
}

bool llama_model_shared_attn_set(llama_model * model, const int32_t * source_layers, size_t n_layers) {
    try {
        llama_hparams hparams = model->hparams;
        shared_attn_set(hparams, model->arch, source_layers, n_layers);

        for (uint32_t il = 0; il < n_layers; ++il) {
            const auto & layer = model->layers[il];

            if (!llama_shared_attn_is_follower(hparams, il) && !layer.wqkv && !(layer.wq && layer.wk)) {
                throw std::runtime_error(format("layer %u cannot compute its own attention weights: the model has no Q and K for it", il));
            }
        }

        model->hparams.shared_attn_offs = hparams.shared_attn_offs;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }

    return true;
}
